"""A loss of a batch whose last rows are padding, at the price of fewer of them.

A compiled program has fixed shapes, so the random walks that go with a batch have as many rows as
a batch without any padding calls for; most batches call for half of that or less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from recsys_jax.tracing.batch import Batch

PARTS = 3
# Each part is compiled by itself: not for the few rows of small batches.
MIN_ROWS = 16


def loss_of_real_rows(
    loss: Callable[[Any, Batch], tuple[jax.Array, Any]], values: Any, batch: Batch
) -> tuple[jax.Array, Any]:
    """loss(values, batch) -> (scalar, aux), computed on a third, two thirds or all of the rows:
    the fewest that hold the real ones, which must come first. A small batch is not cut so finely.

    Gradients reach `values` alone, and through the scalar alone; whatever else `loss` closes over
    must be constant. What padding rows would do must not matter to `loss`, and its aux must have
    the same shapes whatever the rows.
    """
    most = batch.mask.shape[0]
    parts = max(1, min(PARTS, most // MIN_ROWS))
    sizes = sorted({-(-most * part // parts) for part in range(1, parts + 1)})

    def chosen(fn: Callable[[Any, Batch], Any], values, batch):
        def first(size: int):
            return lambda v, b: fn(v, jax.tree.map(lambda x: x[:size], b))

        real = jnp.sum(jnp.any(batch.mask, -1))
        index = jnp.sum(real > jnp.asarray(sizes[:-1], jnp.int32))
        return jax.lax.switch(index, [first(size) for size in sizes], values, batch)

    # Differentiated inside the branch. Outside of it every branch would hand on what the backward
    # pass of any of them needs, which costs more than the rows that are saved.
    @jax.custom_vjp
    def run(values, batch):
        return chosen(loss, values, batch)

    def forward(values, batch):
        return chosen(jax.value_and_grad(loss, has_aux=True), values, batch)

    def backward(grads, cotangents):
        return jax.tree.map(lambda g: cotangents[0] * g, grads), None

    run.defvjp(forward, backward)
    return run(values, batch)
