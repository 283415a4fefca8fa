"""Pangu Ultra in small: pre-training on text that is there after installation, on a CPU.

    python launch.py --config=configs/pangu/cpu_5m.py:single --workdir=runs/cpu_5m
    python launch.py --mode=generate --workdir=runs/cpu_5m --config.generate.prompt="def main("

The architecture of the report (depth-scaled sandwich norm, TinyInit, GQA, SwiGLU, a domain-aware
vocabulary) at 12 layers of width 144; text is the Python standard library, and descriptions and
docstrings of the installed packages. `phases` goes through all seven phases of the report's
schedule in small. Needs the `text` extra.
"""

import dataclasses

from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.data.text import CorpusConfig, ShardConfig, SourceConfig
from pangu_jax.data.tokenizer import BpeConfig
from pangu_jax.models.presets import preset
from pangu_jax.pretraining.config import HeldOutConfig, PretrainConfig, ScheduleConfig
from pangu_jax.training.config import TrainConfig
from pangu_jax.training.optimizer import OptimizerConfig

VARIANTS = {
    "single": Variant("one phase, 2.2 M tokens", "7 min with the corpus",
                      "perplexity 80 on code, 82 on English"),
    "phases": Variant("the seven phases of the report, 1 M tokens",
                      "10 min busy, 6 min of processor time",
                      "perplexity 166 on code, 186 on English"),
    "debug": Variant("a few steps of a tiny model", "under 1 min", "runs through"),
}  # fmt: skip

# Spec 3.3; weight decay on the gains of norms too (the report's Figure 10 implies it).
_ADAMW = OptimizerConfig(name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)


def _corpus(vocab_size: int, max_documents: int = 0) -> CorpusConfig:
    return CorpusConfig(
        sources=(
            SourceConfig(kind="stdlib", max_documents=max_documents),
            SourceConfig(kind="package_docs", max_documents=max_documents),
            SourceConfig(kind="docstrings", max_documents=max_documents or 2000),
        ),
        quotas={"english": 0.5, "code": 0.5},
        bpe=BpeConfig(vocab_size=vocab_size),
        compare=False,
        shards=ShardConfig(held_out=0.05),
    )


def pretrain_config(variant: str) -> PretrainConfig:
    """The run of a variant, for other configurations to change."""
    train = TrainConfig(
        log_every=10, eval_every=100, checkpoint_every=100, best_metric="loss", best_mode="min",
        optimizer=_ADAMW,
    )  # fmt: skip
    if variant == "debug":
        return (
            PretrainConfig(
                model=preset("debug", vocab_size=1024),
                corpus=_corpus(1024, max_documents=60),
                schedule=ScheduleConfig(
                    tokens=40_000, seq_len=64, batch_rows=16, learning_rate=3e-3,
                    warmup_fraction=0.1,
                ),
                held_out=HeldOutConfig(rows=4),
                train=dataclasses.replace(
                    train, eval_every=20, checkpoint_every=20, quick_compile=True
                ),
            )
        )  # fmt: skip
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    return (
        PretrainConfig(
            model=preset("cpu_5m"),
            corpus=_corpus(8192),
            schedule=ScheduleConfig(
                kind="single" if variant == "single" else "pangu_ultra",
                tokens=2.2e6 if variant == "single" else 1e6,
                seq_len=256 if variant == "single" else 128, batch_rows=8,
                learning_rate=3e-3, warmup_fraction=0.02,
            ),
            train=train,
        )
    )  # fmt: skip


def get_config(variant: str = "single"):
    config = pretrain_config(variant)
    # Its report shows the vocabulary beside one BPE over everything.
    corpus = dataclasses.replace(config.corpus, compare=True)
    return as_config_dict(dataclasses.replace(config, corpus=corpus))
