"""Host batches of several steps as one, and the check that their rows fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pangu_jax.training.config import TrainConfig
from pangu_jax.training.errors import TrainingError


def stack_batches(batches: Sequence[Any]) -> Any:
    """K trees of arrays [R, ...] as one tree of arrays [K, R, ...]."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)


def check_rows(host: Any, config: TrainConfig, mesh: Mesh) -> None:
    """Raises unless the rows of a stacked batch [K, R, ...] fit the mesh and the micro-batches."""
    ways = mesh.shape["data"] * config.grad_accumulation
    for path, array in jax.tree_util.tree_flatten_with_path(host)[0]:
        if array.ndim < 2:
            raise TrainingError(
                f"Batch array {jax.tree_util.keystr(path)} has no rows; every "
                "array of a batch needs the rows as its first axis."
            )
        rows = array.shape[1] * jax.process_count()
        if rows % ways:
            raise TrainingError(
                f"A batch has {rows} rows, which cannot be divided over train.mesh.data="
                f"{mesh.shape['data']} times train.grad_accumulation={config.grad_accumulation}; "
                f"make the batch size a multiple of {ways} (recommenders: "
                "--config.batch.batch_size, language models: --config.schedule.batch_rows)."
            )
