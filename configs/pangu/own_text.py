"""Pre-training on your own text: folders, JSON lines, Parquet files or tensorflow-datasets.

    python launch.py --config=configs/pangu/own_text.py:small --workdir=runs/own \
        "--config.corpus.sources=({'kind':'folder','path':'texts','domain':'english'},)"

Several sources are several groups in the brackets; kinds, fields and domains: docs/text_data.md.
Domains share the training tokens by --config.mixtures.general.weights.*, those that the corpus
lacks are left out. One byte-level BPE over everything. Needs the `text` extra.
"""

import dataclasses

from configs.pangu import cpu_5m
from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.data.text import SourceConfig

VARIANTS = {
    "small": Variant("cpu_5m.py:single on your text", "depends on the text", "your numbers"),
    "debug": Variant("a few steps of a tiny model on your text", "under 1 min", "runs through"),
}

_SOURCES = (SourceConfig(kind="folder", path="texts", domain="english"),)


def get_config(variant: str = "small"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    config = cpu_5m.pretrain_config("single" if variant == "small" else "debug")
    corpus = dataclasses.replace(config.corpus, sources=_SOURCES, quotas={})
    return as_config_dict(dataclasses.replace(config, corpus=corpus))
