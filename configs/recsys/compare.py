"""All sequential models on one data set, several seeds, one table and plot.

    python launch.py --config=configs/recsys/compare.py:ml100k

Equal budgets: the same batches, steps, width, loss and negatives for every sequence model; learning
rate and dropout are each model's best of the same grid (search.py; LLaMa and NARM were not
searched). BPR-MF trains on (user, item) pairs for as many epochs.
"""

from configs.recsys import _base as base
from configs.recsys._models import entry, ml100k_entry

MODELS = (
    "fuxi_alpha", "hstu", "sasrec", "llama", "gru4rec", "narm", "bpr_mf", "most_popular",
)  # fmt: skip

VARIANTS = {
    "ml100k": base.Variant(
        "8 models x 3 seeds on MovieLens-100K",
        "about 1 h (estimated from its parts)",
        "NDCG@10 SASRec .104, HSTU .104, LLaMa .100, GRU4Rec .099, FuXi-alpha .093, NARM .087, "
        "BPR-MF .065, most popular .043",
    ),
    "debug": base.Variant("the same, tiny", "31 s with an empty cache", "runs through"),
}


def get_config(variant: str = "ml100k"):
    if variant == "ml100k":
        return base.ml100k({name: ml100k_entry(name) for name in MODELS}, seeds=(0, 1, 2))
    if variant == "debug":
        models = {name: entry(name, 16, layers=1) for name in MODELS}
        return base.debug(models)
    raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
