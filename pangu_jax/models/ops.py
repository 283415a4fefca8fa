"""What a block asks of whoever runs it: its weight products and its attention.

On one device, or where XLA divides the work by itself, those are plain functions. A program that
divides the work by hand (`pangu_jax.parallel.decoder`) hands the blocks another `BlockOps`, whose
functions also talk to the devices that hold the other parts; the blocks themselves stay the same
and name no mesh axis.

Letters: B rows, T positions, D hidden width, F columns of a weight.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from pangu_jax.kernels.segment_attention import segment_attention
from pangu_jax.models.cache import write_layer
from pangu_jax.models.context import visibility
from pangu_jax.models.projection import Kernel, product


@dataclasses.dataclass(frozen=True)
class BlockOps:
    """One device, or automatic division by XLA."""

    def products(
        self, equations: tuple[str, ...], x: jax.Array, kernels: tuple[Kernel, ...]
    ) -> tuple[jax.Array, ...]:
        """x (B, T, D) times each kernel (D, ...), by its equation: the way into a branch."""
        return tuple(product(e, x, k) for e, k in zip(equations, kernels, strict=True))

    def product_back(self, equation: str, x: jax.Array, kernel: Kernel) -> jax.Array:
        """x (B, T, ...) times kernel (..., D) -> (B, T, D): the way back to the residual stream."""
        return product(equation, x, kernel)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, **arguments) -> jax.Array:
        """`segment_attention` with its arguments."""
        return segment_attention(q, k, v, **arguments)

    def attend_cached(
        self, q: jax.Array, k: jax.Array, v: jax.Array, context: Any, layer: jax.Array, cache: Any,
        **arguments,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        """Attention to everything in the cache, into which k and v are written first.

        Here the cache is that of `KVCache`: keys and values, each (L, B, S, K, H).
        """
        all_k, k = write_layer(cache[0], layer, context.cache_start, k)
        all_v, v = write_layer(cache[1], layer, context.cache_start, v)
        k, v = k.astype(q.dtype), v.astype(q.dtype)
        return self.attend(q, k, v, **visibility(context), **arguments), (all_k, all_v)


LOCAL = BlockOps()
