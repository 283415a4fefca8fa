"""A run on a few generated documents of one domain, for the tests to change."""

import contextlib
import json

import jax
import numpy as np
import pytest

from pangu_jax.data.text import CorpusConfig, Mixture, ShardConfig, SourceConfig
from pangu_jax.data.tokenizer import BpeConfig
from pangu_jax.models import preset
from pangu_jax.pretraining import experiment, placement
from pangu_jax.pretraining.config import HeldOutConfig, PretrainConfig, ScheduleConfig
from pangu_jax.training.config import TrainConfig
from pangu_jax.training.optimizer import OptimizerConfig

WORDS = "the model reads a row of tokens and learns which one comes next in every document".split()


@contextlib.contextmanager
def on_one_device():
    """Meshes of one of the fake devices; gives it."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (experiment, placement):
            patch.setattr(module, "make_mesh", lambda config: mesh)
        yield mesh


def tiny_config(folder, *, steps=8, batch_rows=8, model=None, train=None) -> PretrainConfig:
    """80 documents in `folder`, rows of 16 tokens, a vocabulary of 300; the corpus is made there.

    model, train: fields in place of those here.
    """
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, 60))}) for _ in range(80)]
    (folder / "english.jsonl").write_text("\n".join(lines))
    source = SourceConfig(kind="jsonl", path=str(folder / "english.jsonl"), domain="english")
    loop = dict(
        log_every=2, eval_every=4, checkpoint_every=4, best_metric="loss", best_mode="min",
        progress="none", quick_compile=True,
        optimizer=OptimizerConfig(b2=0.95, weight_decay=0.1, clip_norm=1.0),
    )  # fmt: skip
    return PretrainConfig(
        model=preset("debug", **(dict(vocab_size=300, norm_eps=1e-6) | (model or {}))),
        corpus=CorpusConfig(
            sources=(source,), bpe=BpeConfig(vocab_size=300), shards=ShardConfig(held_out=0.2)
        ),
        corpus_folder=str(folder / "corpus"),
        mixtures={"general": Mixture({"english": 1.0})},
        schedule=ScheduleConfig(
            tokens=steps * batch_rows * 16, seq_len=16, batch_rows=batch_rows, learning_rate=1e-2
        ),
        held_out=HeldOutConfig(rows=2),
        train=TrainConfig(**(loop | (train or {}))),
    )
