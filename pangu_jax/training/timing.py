"""Time of whole optimizer steps, warm, for benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pangu_jax.parallel.sharding import global_batch, replicated, shardings_for, unbox
from pangu_jax.training.state import create_state
from pangu_jax.training.step import LossFn, gradients_of, make_dispatch

WARM_UP, TIMED = 2, 8


class StepTimes(NamedTuple):
    """seconds: of each step after WARM_UP. compile_seconds: the first step with compilation."""

    seconds: list[float]
    compile_seconds: float


def time_steps(
    init_fn: Callable[[jax.Array], Any],
    loss_fn: LossFn,
    batches: Sequence[Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int = 0,
    accumulation: int = 1,
) -> StepTimes:
    """Trains on the host batches one after the other and times every step.

    Args:
      batches: WARM_UP batches that are not timed, then those that are, all of one shape.
    """

    def create(key):
        return create_state(init_fn, optimizer, key)

    key = jax.random.key(seed)
    seconds, compile_seconds = [], 0.0
    with jax.set_mesh(mesh):
        placed = shardings_for(jax.eval_shape(create, key), mesh)
        state = jax.jit(lambda k: unbox(create(k)), out_shardings=placed)(key)
        fixed = replicated(mesh)
        bad = jax.device_put(jnp.int32(-1), fixed)
        step = jax.jit(
            make_dispatch(gradients_of(loss_fn, accumulation), optimizer),
            donate_argnums=0,
            out_shardings=(placed, fixed, fixed),
        )
        for index, batch in enumerate(batches):
            stacked = global_batch(jax.tree.map(lambda x: x[None], batch), mesh, batch_axis=1)
            started = time.perf_counter()
            state, bad, out = step(state, bad, stacked)
            jax.block_until_ready(out)
            took = time.perf_counter() - started
            if index == 0:
                compile_seconds = took
            if index >= WARM_UP:
                seconds.append(took)
    return StepTimes(seconds, compile_seconds)
