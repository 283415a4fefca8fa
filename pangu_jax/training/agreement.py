"""Decisions that all processes of a run must take alike."""

from __future__ import annotations

import jax
import numpy as np


def same_numbers(values: dict[str, float]) -> dict[str, float]:
    """Process 0's values on every process (a collective call; the names must be the same)."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    names = sorted(values)
    # As bytes, because JAX would round float64 to float32.
    raw = np.asarray([values[name] for name in names], np.float64).view(np.uint8)
    agreed = np.asarray(multihost_utils.broadcast_one_to_all(raw), np.uint8).view(np.float64)
    return {name: float(value) for name, value in zip(names, agreed, strict=True)}


def largest(*numbers: int) -> tuple[int, ...]:
    """Elementwise maximum over the processes (a collective call)."""
    if jax.process_count() == 1:
        return numbers
    from jax.experimental import multihost_utils

    rows = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    return tuple(int(n) for n in np.asarray(rows).reshape(-1, len(numbers)).max(0))
