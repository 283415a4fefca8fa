"""What training carries from step to step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes.

    step: int32 scalar, optimizer steps done.
    params: tree of arrays.
    opt_state: the optax state of `params`.
    rng: uint32 key data of the run's seed; never changes, every step folds its number in, so
      that a resumed run draws the same numbers.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums over one batch, returned by a task's loss function.

    total: float scalar, sum of the per-token (or per-example) losses.
    weight: float scalar, how many tokens (or their weights) were summed.
    metrics: name -> float scalar, further sums; reported divided by `weight`.
    """

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


def create_state(init_fn, optimizer, rng: jax.Array) -> TrainState:
    """State before the first step; `rng` is a typed key, `init_fn(key)` returns the parameters."""
    init_key, run_key = jax.random.split(rng)
    params = init_fn(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        rng=jax.random.key_data(run_key),
    )
