"""The decoder's parts on one device of many: what they exchange, with every transpose written out.

Everything here runs inside a fully manual `shard_map` that does not track which values vary over
which axis. There the transpose of a sum over devices is taken to be another such sum, which counts
gradients once per device; so each sum below is one of a pair whose backward pass is given.

Letters: B rows, T positions on this context rank, S = T / tensor positions of the residual stream
(T without sequence parallelism), D hidden width, V vocabulary (padded).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.kernels.implementation import current_platform
from pangu_jax.kernels.segment_attention import segment_attention
from pangu_jax.models.loss import VocabularyPart
from pangu_jax.models.ops import BlockOps
from pangu_jax.parallel.collective_matmul import (
    copy_products,
    gather_products,
    product_scatter,
    product_sum,
)
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.ring_attention import gathered_segment_attention, ring_segment_attention

TENSOR, CONTEXT = "tensor", "context"


@dataclasses.dataclass(frozen=True)
class ManualOps(BlockOps):
    """Weights divided by columns, then by rows; keys and values divided over context."""

    layout: Layout

    def products(self, equations, x, kernels):
        if self.layout.tensor == 1:
            return super().products(equations, x, kernels)
        if not self.layout.sequence_parallel:
            return copy_products(x, kernels, equations=equations, axis_name=TENSOR)
        return gather_products(
            x, kernels, equations=equations, axis_name=TENSOR, overlap=self.layout.overlap
        )

    def product_back(self, equation, x, kernel):
        if self.layout.tensor == 1:
            return super().product_back(equation, x, kernel)
        if not self.layout.sequence_parallel:
            return product_sum(equation, x, kernel, axis_name=TENSOR)
        return product_scatter(equation, x, kernel, axis_name=TENSOR, overlap=self.layout.overlap)

    def attend(self, q, k, v, **arguments):
        if self.layout.context == 1:
            return segment_attention(q, k, v, **arguments)
        ring = self.layout.context_strategy == "ring"
        attention = ring_segment_attention if ring else gathered_segment_attention
        return attention(q, k, v, axis_name=CONTEXT, **arguments)


@dataclasses.dataclass(frozen=True)
class TensorVocabulary(VocabularyPart):
    """Columns of the head divided over the tensor axis; those from `size` on are padding."""

    size: int

    def columns(self, here):
        ids = jax.lax.axis_index(TENSOR) * here + jnp.arange(here)
        return ids, ids < self.size

    def max(self, x):
        return jax.lax.pmax(x, TENSOR)

    def sum(self, x):
        return jax.lax.psum(x, TENSOR)


def in_order(first: Any, then: Any) -> Any:
    """`then`, unchanged, which on a CPU is not there before `first` is.

    On XLA's CPU back end exchanges that do not depend on each other run in an order that each
    device finds for itself, and the first holds up the others: two devices that begin with
    different ones wait for each other for ever (seen with one of them in a branch). Elsewhere
    nothing is held back, so that exchanges go ahead of what they do not need.

    Args:
      first: a tree that begins with a floating array. then: a tree of arrays.
    """
    if current_platform() != "cpu":
        return then
    # Never true, which the compiler does not know.
    never = jnp.ravel(jax.tree.leaves(first)[0])[0] > jnp.inf
    return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), then)


def embed(table: jax.Array, tokens: jax.Array, size: int, layout: Layout, dtype) -> jax.Array:
    """Rows of a table (V / tensor, D) for tokens (B, T) -> (B, S, D).

    Ids outside the vocabulary of `size` give NaN, as on one device.
    """
    here = table.shape[0]
    local = tokens - jax.lax.axis_index(TENSOR) * here
    found = (local >= 0) & (local < here)
    x = jnp.where(found[..., None], jnp.take(table, jnp.clip(local, 0, here - 1), axis=0), 0)
    x = x.astype(dtype)  # one row is not zero, so the sum over devices is exact in any type
    if layout.tensor > 1:
        x = scatter_sequence(x) if layout.sequence_parallel else sum_forward(x)
    known = (tokens >= 0) & (tokens < size)
    if layout.tensor > 1 and layout.sequence_parallel:
        ways = layout.tensor
        known = jax.lax.dynamic_slice_in_dim(
            known, jax.lax.axis_index(TENSOR) * (known.shape[1] // ways), known.shape[1] // ways, 1
        )
    return jnp.where(known[..., None], x, jnp.nan)


def whole_sequence(x: jax.Array, layout: Layout) -> jax.Array:
    """(B, S, D) -> (B, T, D) before a product divided by columns that is not one of `ManualOps`."""
    if layout.tensor == 1:
        return x
    if not layout.sequence_parallel:
        return sum_backward(x)
    return jax.lax.all_gather(x, TENSOR, axis=1, tiled=True)  # transpose: a reduce-scatter


def scatter_sequence(x: jax.Array) -> jax.Array:
    """Partial sums (B, T, D) -> this device's positions of the whole sums."""
    return jax.lax.psum_scatter(x, TENSOR, scatter_dimension=1, tiled=True)


@jax.custom_vjp
def sum_forward(x: jax.Array) -> jax.Array:
    """Sum over tensor; backward: the cotangent, which is the same on every device."""
    return jax.lax.psum(x, TENSOR)


sum_forward.defvjp(lambda x: (sum_forward(x), None), lambda _, dy: (dy,))


@jax.custom_vjp
def sum_backward(x: jax.Array) -> jax.Array:
    """x; backward: the sum over tensor of the devices' cotangents."""
    return x


sum_backward.defvjp(lambda x: (x, None), lambda _, dy: (jax.lax.psum(dy, TENSOR),))
