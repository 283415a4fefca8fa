"""What a block asks of whoever runs it: its weight products and its attention.

On one device, or where XLA divides the work by itself, those are plain functions. A program that
divides the work by hand (`pangu_jax.parallel.decoder`) hands the blocks another `BlockOps`, whose
functions also talk to the devices that hold the other parts; the blocks themselves stay the same
and name no mesh axis.

Letters: B rows, T positions, D hidden width, F columns of a weight.
"""

from __future__ import annotations

import dataclasses

import jax

from pangu_jax.kernels.segment_attention import segment_attention
from pangu_jax.models.projection import product


@dataclasses.dataclass(frozen=True)
class BlockOps:
    """One device, or automatic division by XLA."""

    def products(
        self, equations: tuple[str, ...], x: jax.Array, kernels: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        """x (B, T, D) times each kernel (D, ...), by its equation: the way into a branch."""
        return tuple(product(e, x, k) for e, k in zip(equations, kernels, strict=True))

    def product_back(self, equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """x (B, T, ...) times kernel (..., D) -> (B, T, D): the way back to the residual stream."""
        return product(equation, x, kernel)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, **arguments) -> jax.Array:
        """`segment_attention` with its arguments."""
        return segment_attention(q, k, v, **arguments)


LOCAL = BlockOps()
