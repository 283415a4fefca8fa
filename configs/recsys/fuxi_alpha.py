"""FuXi-alpha (arXiv 2502.03036) beside most-popular and SASRec in the same budget.

    python launch.py --config=configs/recsys/fuxi_alpha.py:ml100k

ml100k is the default of launch.py. ml1m and ml20m are the released configurations (widths,
layers, batch, steps, protocol: no validation part, unstable tie order); ml1m_clean is ml1m with a
validation part, stable order and the whole history filtered.
"""

from configs.recsys import _base as base
from configs.recsys._models import entry, ml100k_entry

VARIANTS = {
    "ml100k": base.Variant(
        "MovieLens-100K, leave-one-out, full ranking, FuXi-alpha / SASRec / most-popular",
        "6 min (6 min 3 s, JAX 0.10.2)",
        "NDCG@10 FuXi-alpha .0964, SASRec .1073, most popular .0432",
    ),
    "debug": base.Variant("the same, a few steps of tiny models", "under 1 min", "runs through"),
    "ml1m": base.Variant(
        "MovieLens-1M as released: D 50, 2 layers, 101 epochs of 48 steps",
        "not measured",
        "paper: NDCG@10 .1835, HR@10 .3254; not measured here",
    ),
    "ml1m_large": base.Variant(
        "MovieLens-1M as released, 8 layers, 2 heads of 25",
        "not measured",
        "paper: NDCG@10 .1934, HR@10 .3359; not measured here",
    ),
    "ml1m_clean": base.Variant(
        "MovieLens-1M, validation part, stable order, whole history filtered",
        "not measured",
        "not measured",
    ),
    "ml20m": base.Variant(
        "MovieLens-20M as released: D 256, 2 layers, 4 heads, SwiGLU 4D, 101 epochs",
        "not measured (needs an accelerator)",
        "paper: NDCG@10 .1954, HR@10 .3353; not measured here",
    ),
}


def get_config(variant: str = "ml100k"):
    if variant == "ml100k":
        names = ("fuxi_alpha", "sasrec", "most_popular")
        return base.ml100k({name: ml100k_entry(name) for name in names})
    if variant == "debug":
        models = {name: entry(name, 16) for name in ("fuxi_alpha", "sasrec", "most_popular")}
        return base.debug(models)
    if variant in ("ml1m", "ml1m_clean"):
        models = {"fuxi_alpha": entry("fuxi_alpha", 50)}
        return base.movielens("1m", models, steps=4848, eval_every=48, official=variant == "ml1m")
    if variant == "ml1m_large":
        models = {"fuxi_alpha": entry("fuxi_alpha", 50, heads=2, layers=8)}
        return base.movielens("1m", models, steps=4848, eval_every=48, official=True)
    if variant == "ml20m":
        models = {"fuxi_alpha": entry("fuxi_alpha", 256, heads=4, ffn_multiple=4.0)}
        return base.movielens("20m", models, steps=109_282, eval_every=1082, official=True)
    raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
