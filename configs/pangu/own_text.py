"""Pre-training on your own text: folders, JSON lines, Parquet files or tensorflow-datasets.

    python launch.py --config=configs/pangu/own_text.py:small --workdir=runs/own \
        "--config.corpus.sources=({'kind':'folder','path':'texts','domain':'english'},)"

`smollm2` goes on from SmolLM2-135M-Instruct, with its tokenizer, instead of a new model;
--config.initial_weights names other weights (a .gguf file or a Hugging Face directory).

Several sources are several groups in the brackets; kinds, fields and domains: docs/text_data.md.
Domains share the training tokens by --config.mixtures.general.weights.*, those that the corpus
lacks are left out. New models get one byte-level BPE over everything. Needs the `text` extra, and
the `weights` extra where weights are read or exported (--mode=export).
"""

import dataclasses

from configs.pangu import cpu_5m
from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.data.text import SourceConfig

VARIANTS = {
    "small": Variant("cpu_5m.py:single on your text", "depends on the text", "your numbers"),
    "smollm2": Variant(
        "SmolLM2-135M goes on with your text, 0.1 M tokens",
        "8 min",
        "yours; docstrings: perplexity 11.2 to 9.4",
    ),
    "debug": Variant("a few steps of a tiny model on your text", "under 1 min", "runs through"),
}

_SOURCES = (SourceConfig(kind="folder", path="texts", domain="english"),)


def get_config(variant: str = "small"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    config = cpu_5m.pretrain_config("debug" if variant == "debug" else "single")
    corpus = dataclasses.replace(config.corpus, sources=_SOURCES, quotas={})
    if variant == "smollm2":
        config = dataclasses.replace(
            config,
            initial_weights="smollm2",
            schedule=dataclasses.replace(
                config.schedule, tokens=1e5, seq_len=256, batch_rows=4, learning_rate=2e-4,
                warmup_fraction=0.1,
            ),
            train=dataclasses.replace(
                config.train, log_every=5, eval_every=25, checkpoint_every=25
            ),
        )  # fmt: skip
    return as_config_dict(dataclasses.replace(config, corpus=corpus))
