"""Weights in int8 with one scale per output feature, and products with them.

Two ways to multiply. 'weight_only' rounds nothing but the weights: where it pays, on CPU, each
activation row becomes the sum of two int8 rows (a step of 1/32,258 of its largest entry), since
integer units are several times as fast as floats made of the weights. 'dynamic' keeps the first
of the two rows alone (a step of 1/127; the scheme of LLM.int8, arXiv 2208.07339 section 2.1,
without its outlier columns).

Letters: I inputs of a weight, O outputs, both flattened; R rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Mode = Literal["weight_only", "dynamic"]
MODES = get_args(Mode)
_ROWS_BY_ROWS = (((1,), (1,)), ((), ()))  # (R, I) by (O, I)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Kernel:
    """A weight (I..., O...) as integers.

    q: int8 (O, I). scale: float32 (O,); the weight is scale * q, turned round.
    shape: of the weight. mode: see the module.
    """

    q: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    mode: Mode = dataclasses.field(default="weight_only", metadata={"static": True})

    def dequantized(self, dtype: Any = jnp.float32) -> jax.Array:
        """The weight (I..., O...) that the integers stand for."""
        return (
            (self.q.astype(jnp.float32) * self.scale[:, None]).T.reshape(self.shape).astype(dtype)
        )


def quantize(kernel: jax.Array, num_inputs: int, mode: Mode = "weight_only") -> Int8Kernel:
    """A weight (I..., O...) whose first `num_inputs` axes are inputs, rounded to nearest.

    Raises:
      ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"int8 mode {mode!r} is unknown; allowed: {', '.join(MODES)}.")
    flat = jnp.asarray(kernel, jnp.float32).reshape(math.prod(kernel.shape[:num_inputs]), -1).T
    q, scale = quantize_rows(flat)
    return Int8Kernel(q, scale[:, 0], tuple(kernel.shape), mode)


def quantize_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int8 x / scale, float32 scale (..., 1)), the largest of each row being 127."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def int8_product(x: jax.Array, kernel: Int8Kernel) -> jax.Array:
    """x (..., I...) times the kernel -> (..., O...), in the type of x.

    The gradient with respect to x is that of the product with the rounded weights, as if nothing
    else were rounded (straight through); the kernel gets none.
    """
    inputs = kernel.q.shape[1]
    axes = input_axes(kernel.shape, inputs)
    y = _product(kernel.mode, x.reshape(-1, inputs), kernel.q, kernel.scale)
    return y.reshape(*x.shape[: x.ndim - axes], *kernel.shape[axes:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(mode: Mode, rows: jax.Array, q: jax.Array, scale: jax.Array) -> jax.Array:
    """(R, I) times int8 (O, I), each output times its scale -> (R, O)."""
    multiply = _dynamic if mode == "dynamic" else _weight_only
    return (multiply(rows, q) * scale).astype(rows.dtype)


def _product_forward(mode, rows, q, scale):
    return _product(mode, rows, q, scale), (q, scale)


def _product_backward(mode, residuals, dy):
    del mode
    q, scale = residuals
    d_rows = (dy * scale).astype(dy.dtype) @ q.astype(dy.dtype)
    return d_rows, np.zeros(q.shape, jax.dtypes.float0), jnp.zeros_like(scale)


_product.defvjp(_product_forward, _product_backward)


def input_axes(shape: tuple[int, ...], inputs: int) -> int:
    """How many axes of a weight (I..., O...) hold its `inputs` features; axes of 1 among them."""
    axes = 1
    while math.prod(shape[:axes]) < inputs:
        axes += 1
    return axes


def _dynamic(rows: jax.Array, q: jax.Array) -> jax.Array:
    first, scale = quantize_rows(rows)
    return _integer_product(first, q).astype(jnp.float32) * scale


def _weight_only(rows: jax.Array, q: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(rows, q, cpu=_in_two_terms, default=_as_floats)


def _in_two_terms(rows: jax.Array, q: jax.Array) -> jax.Array:
    first, scale = quantize_rows(rows)
    rest = rows.astype(jnp.float32) / scale - first  # at most 1/2
    second = jnp.round(rest * 254).astype(jnp.int8)
    y = _integer_product(jnp.concatenate([first, second]), q).astype(jnp.float32)
    return (y[: len(rows)] + y[len(rows) :] / 254) * scale


def _as_floats(rows: jax.Array, q: jax.Array) -> jax.Array:
    return jax.lax.dot_general(
        rows, q.astype(rows.dtype), _ROWS_BY_ROWS, preferred_element_type=jnp.float32
    )


def _integer_product(a: jax.Array, q: jax.Array) -> jax.Array:
    """int8 (R, I) times int8 (O, I) -> int32 (R, O)."""
    return rows_product(a, q, _ROWS_BY_ROWS)


def rows_product(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    """dot_general of rows (R, I) and a matrix, summed in int32 for integers, else in float32.

    XLA on CPU multiplies a single row of a short type in a scalar loop, two and more with its
    vector kernels; so a single one gets company.
    """
    alone = a.shape[0] == 1 and a.dtype.itemsize < 4
    whole = jnp.issubdtype(a.dtype, jnp.integer)
    acc = jnp.int32 if whole else jnp.promote_types(a.dtype, jnp.float32)
    a = jnp.pad(a, ((0, 1), (0, 0))) if alone else a
    y = jax.lax.dot_general(a, b, dimensions, preferred_element_type=acc)
    return y[:1] if alone else y
