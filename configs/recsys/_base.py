"""What the recommender configurations share: data sets, budgets, and the ConfigDict around them."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.training.config import TrainConfig
from pangu_jax.training.optimizer import OptimizerConfig
from recsys_jax.data.load import LogConfig
from recsys_jax.sequential.config import (
    BatchConfig,
    EvaluationConfig,
    ExperimentConfig,
    PredictConfig,
    SplitConfig,
    model_entry,
)
from recsys_jax.sequential.losses import LossConfig

Models = dict[str, dict[str, Any]]


def ml100k(models: Models, seeds: tuple[int, ...] = (0,)) -> ConfigDict:
    """MovieLens-100K, leave-one-out with validation, full ranking; equal budgets for all models."""
    return as_config_dict(
        ExperimentConfig(
            data=LogConfig(source="movielens_100k"),
            batch=BatchConfig(batch_size=128, max_len=200, packed=True),
            loss=LossConfig(negatives="per_row"),
            train=TrainConfig(
                steps=400,
                eval_every=50,
                log_every=10,
                best_metric="NDCG@10",
                checkpoint_every=200,
                steps_per_dispatch=1,
                optimizer=OptimizerConfig(learning_rate=3e-3),
            ),
            evaluation=EvaluationConfig(),
            predict=PredictConfig(model=next(iter(models))),
            seeds=seeds,
            models=models,
        )
    )


def debug(models: Models) -> ConfigDict:
    """Everything end to end on MovieLens-100K in under a minute: tiny widths, few steps."""
    config = ml100k(models)
    config.batch.max_len = 50
    config.train.steps = 12
    config.train.eval_every = 6
    config.train.log_every = 2
    config.train.quick_compile = True
    config.evaluation.resamples = 200
    config.evaluation.batch_size = 1024  # all users in one batch: one shape to compile
    return config


def movielens(
    name: str, models: Models, *, steps: int, eval_every: int, official: bool
) -> ConfigDict:
    """MovieLens-1M or -20M by tensorflow-datasets (needs a network once, or a prepared folder)."""
    return as_config_dict(
        ExperimentConfig(
            data=LogConfig(source=f"tfds:movielens/{name}-ratings"),
            split=SplitConfig(
                kind="fuxi_official" if official else "leave_one_out",
                order="official" if official else "stable",
            ),
            # The released code: padded batches of 128 users, their last 200 events.
            batch=BatchConfig(batch_size=128, max_len=200, packed=not official),
            evaluation=EvaluationConfig(
                history_filter="window" if official else "all",
                rank_limit=2500 if official else None,
            ),
            train=TrainConfig(
                steps=steps,
                eval_every=eval_every,
                log_every=eval_every // 4,
                best_metric="NDCG@10",
                checkpoint_every=eval_every,
                steps_per_dispatch=8,
                optimizer=OptimizerConfig(learning_rate=1e-3),
            ),
            predict=PredictConfig(model=next(iter(models))),
            models=models,
        )
    )


def popular() -> dict[str, Any]:
    return model_entry("most_popular")


__all__ = [
    "Models", "Variant", "as_config_dict", "debug", "ml100k", "model_entry",
    "movielens", "popular",
]  # fmt: skip
