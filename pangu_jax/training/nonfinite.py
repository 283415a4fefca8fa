"""What happens to a batch whose loss or gradient is not finite."""

from __future__ import annotations

import pathlib
from typing import Any, NoReturn

import jax
import numpy as np

from pangu_jax.training.errors import NonFiniteError
from pangu_jax.training.step import StepOutputs


def report_nonfinite(workdir, step: int, batch: Any, row: StepOutputs) -> NoReturn:
    """Writes the batch to workdir/nonfinite/ and raises NonFiniteError.

    Args:
      workdir: the run's directory.
      step: steps done before this batch; the state of that step has been saved.
      batch: host batch, tree of NumPy arrays.
      row: the step's numbers (Python floats).
    """
    folder = pathlib.Path(workdir) / "nonfinite"
    suffix = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    file = folder / f"step_{step}{suffix}.npz"
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(value)
        for path, value in jax.tree_util.tree_flatten_with_path(batch)[0]
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)
        where = f"The batch is in {file}"
    except OSError as error:
        file, where = None, f"The batch could not be written ({error})"
    loss = row.total / row.weight if row.weight else row.total
    inputs = [
        name
        for name, value in arrays.items()
        if value.dtype.kind == "f" and not np.isfinite(value).all()
    ]
    data = f" Its input {inputs[0]!r} already holds NaN or infinity." if inputs else ""
    raise NonFiniteError(
        f"Training stopped at step {step}: the loss is {loss:g} and the gradient norm "
        f"{row.grad_norm:g}.{data} {where}, the state before it in checkpoints/latest/{step}. "
        "Run the same command with --config.train.nan_guard=skip to leave such updates out, or "
        "start anew with a lower --config.train.optimizer.learning_rate or with "
        "--config.train.optimizer.clip_norm=1.0.",
        step=step,
        batch_file=None if file is None else str(file),
    )
