"""A matrix product with a parameter of any rank, and the constraints on activations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pangu_jax.models.init import constant, normal

# Of the residual stream (B, T, D). Its sequence axis has a name of its own, so that it can be
# split where norms and residual sums run (sequence parallelism) and whole inside attention.
RESIDUAL = ("batch", "residual_sequence", None)


class Projection(nn.Module):
    """einsum(equation, x, kernel) (+ bias), in `dtype`.

    The bias has the trailing `bias_rank` axes of the kernel; 0 means no bias.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    dtype: str
    bias_rank: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", normal(self.std, *self.axes), self.shape)
        y = jnp.einsum(self.equation, x, kernel.astype(self.dtype))
        if self.bias_rank:
            axes, shape = self.axes[-self.bias_rank :], self.shape[-self.bias_rank :]
            y = y + self.param("bias", constant(0.0, *axes), shape).astype(self.dtype)
        return y


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x with its sharding constrained by logical names; nothing without rules and a mesh."""
    return nn.with_logical_constraint(x, axes)
