"""Evaluation on the same held-out rows every time, and log-probabilities of a reference model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.sharding import batch_part, global_batch
from pangu_jax.training.quick_compile import quick_options
from pangu_jax.training.sft.batches import fixed_batches
from pangu_jax.training.sft.encode import Example
from pangu_jax.training.sft.objective import Loss, sequence_log_probs
from pangu_jax.training.sft.packing import RowShape
from pangu_jax.training.signals import check_stop


class HeldOut:
    """The objective's loss and metrics over all held-out examples, each counted by its weight.

    Args:
      loss: of the run. batch_rows: rows of an evaluation batch.
      reference: log-probabilities of a reference model, one row per example, or None.
      quick_compile: see `TrainConfig`.
    """

    def __init__(
        self, examples: Sequence[Example], shape: RowShape, loss: Loss, mesh: Mesh, *,
        batch_rows: int, reference: np.ndarray | None = None, quick_compile: bool = False,
    ):  # fmt: skip
        batches, _ = fixed_batches(examples, shape, batch_rows=batch_rows, reference=reference)
        self._mesh, self._batches = mesh, [_own_rows(batch, mesh) for batch in batches]
        self._sums = jax.jit(
            lambda params, batch, frozen: loss(params, batch, None, frozen),
            compiler_options=quick_options(mesh.devices.flat[0]) if quick_compile else None,
        )

    def evaluate(self, params: Any, frozen: dict[str, Any]) -> dict[str, float]:
        """{'loss', the objective's metrics, and 'perplexity' where there is an nll}, all averages.

        Raises:
          StopRequested: inside `fit`, where a signal came.
        """
        totals: dict[str, float] = {}
        weight = 0.0
        for batch in self._batches:
            check_stop()
            sums = self._sums(params, global_batch(batch, self._mesh), frozen)
            weight += float(sums.weight)
            for name, value in {"loss": sums.total, **sums.metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        values = {name: value / max(weight, 1e-9) for name, value in totals.items()}
        if "nll" in values:
            values["perplexity"] = math.exp(min(values["nll"], 700.0))
        return values


def reference_log_probs(
    config: DecoderConfig, params: Any, examples: Sequence[Example], shape: RowShape, mesh: Mesh,
    *, batch_rows: int, chunk: int,
) -> np.ndarray:  # fmt: skip
    """Log-probability of the learned tokens of every sequence, float32 [examples, width]."""
    batches, rows = fixed_batches(examples, shape, batch_rows=batch_rows)
    run = jax.jit(
        lambda params, batch: sequence_log_probs(config, {"params": params}, batch, chunk),
        out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    )
    out = np.zeros((len(examples), shape.width), np.float32)
    for number, batch in enumerate(batches):
        values = np.asarray(run(params, global_batch(_own_rows(batch, mesh), mesh)))
        for row, value in zip(rows[number * batch_rows :], values, strict=False):
            out[row] = value[: len(row) * shape.width].reshape(-1, shape.width)
    return out


def _own_rows(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, np.ndarray]:
    part, parts = batch_part(mesh)
    rows = len(batch["tokens"])
    own = slice(part * rows // parts, (part + 1) * rows // parts)
    return {name: x[own] for name, x in batch.items()}
