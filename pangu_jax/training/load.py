"""Trained parameters out of a work directory, for evaluation and prediction."""

from __future__ import annotations

import pathlib
from typing import Any

from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.errors import CheckpointError


def load_params(
    workdir, target: Any, *, which: str = "auto", step: int | None = None
) -> tuple[int, Any]:
    """(step, parameters) from a work directory, for evaluation and prediction.

    Args:
      workdir: a directory that `fit` wrote, in use or not.
      target: parameter tree of ShapeDtypeStructs with shardings (see
        `parallel.abstract_with_shardings`) or of arrays; any mesh.
      which: 'best' (by validation), 'latest', or 'auto': best if there is one.

    Raises:
      CheckpointError and its subclasses, as `Checkpoints.restore`.
    """
    if which not in ("auto", "best", "latest"):
        raise CheckpointError(f"which is {which!r}; allowed are auto, best, latest.")
    root = pathlib.Path(workdir) / "checkpoints"
    names = ("best", "latest") if which == "auto" else (which,)
    for name in names:
        if not (root / name).is_dir():
            continue
        store = Checkpoints(root / name, writable=False)
        try:
            if store.steps():
                return store.restore_params(target, step)
        finally:
            store.close()
    raise CheckpointError(
        f"There is no complete checkpoint under {root} ({' or '.join(names)}); "
        "train first or point --workdir elsewhere."
    )
