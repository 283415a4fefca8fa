"""Weights in int8 with one scale per output feature, and products with them.

Two ways to multiply: 'weight_only' turns the integers into floats and sums in float32 (exact but
for the rounding of the weights); 'dynamic' also rounds each activation row to int8 and sums in
int32, which integer units do several times as fast (the scheme of LLM.int8, arXiv 2208.07339
section 2.1, without its outlier columns).

Letters: I inputs of a weight, O outputs, both flattened.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

Mode = Literal["weight_only", "dynamic"]
MODES = get_args(Mode)
# XLA on CPU multiplies a single int8 row in a scalar loop, two and more with its vector kernels.
_LEAST_ROWS = 2


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
    mode: Mode = dataclasses.field(default="dynamic", metadata={"static": True})

    def dequantized(self, dtype: Any = jnp.float32) -> jax.Array:
        """The weight (I..., O...) that the integers stand for."""
        return (
            (self.q.astype(jnp.float32) * self.scale[:, None]).T.reshape(self.shape).astype(dtype)
        )


def quantize(kernel: jax.Array, num_inputs: int, mode: Mode = "dynamic") -> Int8Kernel:
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
    """x (..., I...) times the kernel -> (..., O...), in the type of x."""
    inputs = _num_inputs(kernel)
    lead = x.shape[: x.ndim - inputs]
    rows = x.reshape(-1, kernel.q.shape[1])
    if kernel.mode == "weight_only":
        y = _weight_only(rows, kernel.q)
    else:
        q, scale = quantize_rows(rows)
        y = _rows_times_rows(q, kernel.q).astype(jnp.float32) * scale
    y = (y * kernel.scale).astype(x.dtype)
    return y.reshape(*lead, *kernel.shape[inputs:])


def _num_inputs(kernel: Int8Kernel) -> int:
    inputs, size = 0, 1
    while size < kernel.q.shape[1]:
        size *= kernel.shape[inputs]
        inputs += 1
    return inputs


def _weight_only(rows: jax.Array, q: jax.Array) -> jax.Array:
    return jax.lax.dot_general(
        rows, q.astype(rows.dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


def _rows_times_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """int8 (R, I) times int8 (O, I) -> int32 (R, O)."""
    missing = max(_LEAST_ROWS - a.shape[0], 0)
    padded = jnp.pad(a, ((0, missing), (0, 0))) if missing else a
    y = jax.lax.dot_general(padded, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return y[: a.shape[0]] if missing else y
