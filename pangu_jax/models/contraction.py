"""The product of activations with a weight whose gradient comes in the weight's own order."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contraction(equation: str, x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
    """einsum(equation, x, kernel) in `dtype` (None: the operands'), gradients in their own types.

    Automatic differentiation forms the kernel's gradient transposed and turns it round; XLA on CPU
    then writes the wide activations anew in transposed order and takes a slow path for the product.
    All axes of x that the kernel lacks must be in the result. With a `dtype` wider than the
    operands' the sums are kept that wide, and gradients are rounded to the operands' type before
    they are multiplied, as activations are.
    """
    return jnp.einsum(equation, x, kernel, preferred_element_type=dtype)


def _forward(equation, x, kernel, dtype):
    return contraction(equation, x, kernel, dtype), (x, kernel)


def _backward(equation, dtype, residuals, dy):
    x, kernel = residuals
    if dtype is not None:
        dy = dy.astype(x.dtype)
    operands, of_y = equation.split("->")
    of_x, of_kernel = operands.split(",")
    dx = jnp.einsum(f"{of_y},{of_kernel}->{of_x}", dy, kernel)
    d_kernel = jnp.einsum(f"{of_x},{of_y}->{of_kernel}", x, dy)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype)


contraction.defvjp(_forward, _backward)
