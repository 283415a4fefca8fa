"""HSTU (arXiv 2402.17152), the model FuXi-alpha builds on, alone.

python launch.py --config=configs/recsys/hstu.py:ml100k
"""

from configs.recsys import _base as base
from configs.recsys._models import entry, ml100k_entry

VARIANTS = {
    "ml100k": base.Variant(
        "MovieLens-100K, leave-one-out, full ranking",
        "2 min 20 s",
        "NDCG@10 .109 (seed 0); mean of three seeds .104, see compare.py",
    ),
    "debug": base.Variant("the same, a few steps of a tiny model", "under 1 min", "runs through"),
    "ml1m": base.Variant(
        "MovieLens-1M as released: D 50, 2 layers, 101 epochs",
        "not measured",
        "its authors: NDCG@10 .1720, HR@10 .3097; not measured here",
    ),
}


def get_config(variant: str = "ml100k"):
    if variant == "ml100k":
        return base.ml100k({"hstu": ml100k_entry("hstu")})
    if variant == "debug":
        return base.debug({"hstu": entry("hstu", 16)})
    if variant == "ml1m":
        models = {"hstu": entry("hstu", 50)}
        return base.movielens("1m", models, steps=4848, eval_every=48, official=True)
    raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
