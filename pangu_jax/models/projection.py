"""Weights of any rank, the product with them, and the constraints on activations.

A kernel is an array, or one of the things that stand for one in a product: `Int8Kernel`, and
`LoraKernel`, which is either of them with adapters beside it.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pangu_jax.models.init import constant, normal
from pangu_jax.models.lora.kernel import LoraKernel, adapted, low_rank_product
from pangu_jax.models.quantized import Int8Kernel, int8_product

Kernel = jax.Array | Int8Kernel | LoraKernel

# Of the residual stream (B, T, D). Its sequence axis has a name of its own, so that it can be
# split where norms and residual sums run (sequence parallelism) and whole inside attention.
RESIDUAL = ("batch", "residual_sequence", None)


class Weights(nn.Module):
    """A kernel and, with `bias_rank`, a bias of its trailing axes, cast to `dtype`: (kernel, bias).

    bias is None for bias_rank 0. Where the parameters hold an `Int8Kernel` under 'kernel', it is
    returned as it is; where the collection 'lora' holds adapters here, a `LoraKernel` is.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    dtype: str
    bias_rank: int = 0

    @nn.compact
    def __call__(self) -> tuple[Kernel, jax.Array | None]:
        kernel = adapted(self, self._kernel(), self.shape)
        if not self.bias_rank:
            return kernel, None
        axes, shape = self.axes[-self.bias_rank :], self.shape[-self.bias_rank :]
        return kernel, self.param("bias", constant(0.0, *axes), shape).astype(self.dtype)

    def _kernel(self) -> Kernel:
        stored = self.get_variable("params", "kernel") if not self.is_initializing() else None
        if isinstance(stored, Int8Kernel):
            return stored
        return self.param("kernel", normal(self.std, *self.axes), self.shape).astype(self.dtype)


def product(equation: str, x: jax.Array, kernel: Kernel) -> jax.Array:
    """einsum(equation, x, kernel), in which the kernel's axes are inputs first, then outputs."""
    if isinstance(kernel, LoraKernel):
        base = product(equation, x, kernel.base)
        return (base + low_rank_product(equation, x, kernel)).astype(base.dtype)
    if isinstance(kernel, Int8Kernel):
        return int8_product(x, kernel)
    return _array_product(equation, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _array_product(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """einsum(equation, x, kernel), with the kernel's gradient formed in the kernel's own order.

    Automatic differentiation forms it transposed and turns it round; XLA on CPU then writes the
    wide activations anew in transposed order and takes a slow path for the product. All axes of x
    that the kernel lacks must be in the result, and none may be in all three.
    """
    return jnp.einsum(equation, x, kernel)


def _product_forward(equation, x, kernel):
    return _array_product(equation, x, kernel), (x, kernel)


def _product_backward(equation, residuals, dy):
    x, kernel = residuals
    operands, of_y = equation.split("->")
    of_x, of_kernel = operands.split(",")
    dx = jnp.einsum(f"{of_y},{of_kernel}->{of_x}", dy, kernel)
    d_kernel = jnp.einsum(f"{of_x},{of_y}->{of_kernel}", x, dy)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype)


_array_product.defvjp(_product_forward, _product_backward)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x with its sharding constrained by logical names; nothing without rules and a mesh."""
    return nn.with_logical_constraint(x, axes)
