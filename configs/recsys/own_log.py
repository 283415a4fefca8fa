"""Your own interaction log: CSV, Parquet, RecBole atomic files or S3Rec sequence files.

    python launch.py --config=configs/recsys/own_log.py:csv --config.data.path=log.csv \
        --config.data.columns.user=customer --config.data.columns.item=sku \
        --config.data.columns.timestamp=time --workdir=runs/shop

Afterwards `--mode=predict --workdir=runs/shop` writes top-k lists. Timestamps are numbers; divide
milliseconds by --config.data.time_scale=1000.
"""

from configs.recsys import _base as base
from configs.recsys._models import entry

VARIANTS = {
    "csv": base.Variant(
        "FuXi-alpha, SASRec and most-popular on a CSV file", "depends on the log", "your numbers"
    ),
    "parquet": base.Variant("the same on a Parquet file", "depends on the log", "your numbers"),
    "recbole": base.Variant(
        "the same on RecBole atomic files", "depends on the log", "your numbers"
    ),
    "s3rec": base.Variant(
        "the same on a sequence file without timestamps (Amazon Beauty, ...)",
        "depends on the log",
        "your numbers",
    ),
    "debug": base.Variant("the CSV variant, a few steps of tiny models", "under 1 min", "runs"),
}


def get_config(variant: str = "csv"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    if variant == "debug":
        models = {name: entry(name, 16) for name in ("fuxi_alpha", "sasrec", "most_popular")}
        config = base.debug(models)
        config.data.source = "csv"
        return config
    models = {name: entry(name, 64) for name in ("fuxi_alpha", "sasrec", "most_popular")}
    config = base.ml100k(models)
    config.data.source = variant
    config.batch.max_len = 50 if variant == "s3rec" else 200
    config.train.early_stopping_patience = 5
    config.train.steps = 20_000
    config.train.eval_every = 200
    return config
