"""What the knowledge-tracing configurations share: data sets, budgets, and models."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from pangu_jax.config.flags import as_config_dict
from recsys_jax.tracing.config import (
    EvaluationConfig,
    LearningConfig,
    TracingConfig,
    model_entry,
)
from recsys_jax.tracing.data import (
    CleaningConfig,
    SimulatorConfig,
    SplitConfig,
    TracingDataConfig,
)
from recsys_jax.tracing.models import MODELS, model_spec

Models = dict[str, dict[str, Any]]

_ASK = "<your answers>"  # shown by the error, which also says what to set
DATA = {
    "simulated": TracingDataConfig(),
    # One row per question, students of at least ten answers, their first 200.
    "assist2009": TracingDataConfig(kind="akt", path=_ASK),
    # All answers of students of at least three, in windows of 200, as pyKT has it.
    "assist2009_windows": TracingDataConfig(
        kind="akt", path=_ASK, clean=CleaningConfig(min_answers=3, long="chop")
    ),
    "ednet": TracingDataConfig(kind="pebg", path=_ASK),
    "csv": TracingDataConfig(kind="csv", path=_ASK),
}


def entry(model: str, overrides: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    """An entry of `model` with these fields of its config class."""
    return model_entry(model, model_spec(model).config_class(**config), **overrides or {})


def experiment(
    data: str,
    models: Models,
    *,
    seeds: tuple[int, ...] = (0,),
    epochs: float = 100.0,
    **fields: Any,
) -> ConfigDict:
    """Models on one of DATA, checkpoint by validation AUC, early stopping after ten evaluations."""
    config = TracingConfig(
        data=DATA[data], models=models, seeds=seeds,
        learning=LearningConfig(epochs=float(epochs)), **fields,
    )  # fmt: skip
    return as_config_dict(config)


def debug(models: Models, **fields: Any) -> ConfigDict:
    """Everything end to end on 120 simulated students in under a minute."""
    simulator = SimulatorConfig(num_students=120, num_questions=60, max_length=40)
    config = experiment("simulated", models, **fields)
    small = TracingDataConfig(
        simulator=simulator, clean=CleaningConfig(max_length=40), split=SplitConfig()
    )
    config.data = as_config_dict(small)
    config.learning.epochs = 2.0
    config.learning.batch_size = 16
    config.learning.length_buckets = 1
    config.train.quick_compile = True
    config.train.log_every = 5
    config.evaluation = as_config_dict(
        EvaluationConfig(
            protocols=("single-step", "open loop, threshold", "prefix 0.5, threshold"),
            resamples=50,
            batch_size=32,
        )
    )
    return config


# Small numbers in place of the models' own widths, for runs that only have to run through.
_TINY = {
    "embedding_dim": 8, "hidden_dim": 8, "ffn_dim": 8, "dim": 8, "num_heads": 2, "memory_size": 4,
    "head_dims": (8,), "skill_dim": 8, "answer_dim": 8, "attention_dim": 8, "iterations": 3,
    "num_levels": 3, "level_dim": 8, "chunk": 8,
}  # fmt: skip
ALL = tuple(MODELS)


def tiny_models(names: tuple[str, ...] = ALL) -> Models:
    """Every model at a width of 8."""
    models = {}
    for name in names:
        fields = {f.name for f in dataclasses.fields(model_spec(name).config_class)}
        models[name] = entry(name, **{k: v for k, v in _TINY.items() if k in fields})
    return models
