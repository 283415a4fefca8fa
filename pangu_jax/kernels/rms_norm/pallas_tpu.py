"""RMSNorm and the residual step as Pallas TPU kernels: one pass over the rows, each way.

A grid step holds a block of rows in VMEM. The forward step reads the residual stream and the
branch once and writes the stream and the normed stream once. The backward step keeps no statistics
from the forward pass: it forms them anew from rows it must read in any case, and adds the gradients
of the gains up in float32 in one [1, D] block that stays in VMEM while the grid runs.

Never run on a TPU so far: checked in interpret mode, lowered, and compiled ahead of time.

Letters: R rows (all axes but the last), D width.

Backward, with x^ = x / rms and h = dy * gain: dx = (h - x^ mean(h x^)) / rms, dgain = sum dy x^.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_VMEM_LIMIT = 64 * 2**20
# Bytes that one block of rows may take in float32; about ten live at once in the backward step.
_BLOCK_BYTES = 2 * 2**20


class _Static(NamedTuple):
    eps: float
    post: bool
    interpret: bool


def rms_norm_pallas_tpu(
    x: jax.Array, scale: jax.Array, *, eps: float, interpret: bool = False
) -> jax.Array:
    """Arguments and value as in `api.rms_norm`.

    Raises:
      NotImplementedError: for types other than float32 and bfloat16, and for empty x.
    """
    _check(x)
    static = _Static(float(eps), False, interpret)
    return _norm(static, x.reshape(-1, x.shape[-1]), scale).reshape(x.shape)


def fused_sandwich_step_pallas_tpu(
    x: jax.Array,
    branch: jax.Array,
    post_scale: jax.Array | None,
    next_scale: jax.Array,
    *,
    eps: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and values as in `api.fused_sandwich_step`.

    Raises:
      NotImplementedError: as `rms_norm_pallas_tpu`.
    """
    _check(x, branch)
    static = _Static(float(eps), post_scale is not None, interpret)
    rows = [a.reshape(-1, a.shape[-1]) for a in (x, branch)]
    stream, following = _step(static, *rows, post_scale, next_scale)
    return stream.reshape(x.shape), following.reshape(x.shape)


def rms_norm_interpret(*args, **kwargs) -> jax.Array:
    """`rms_norm_pallas_tpu` in interpret mode: any device, for tests."""
    return rms_norm_pallas_tpu(*args, interpret=True, **kwargs)


def fused_sandwich_step_interpret(*args, **kwargs) -> tuple[jax.Array, jax.Array]:
    """`fused_sandwich_step_pallas_tpu` in interpret mode: any device, for tests."""
    return fused_sandwich_step_pallas_tpu(*args, interpret=True, **kwargs)


def _check(*arrays):
    for x in arrays:
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise NotImplementedError(f"the TPU kernel takes float32 and bfloat16, not {x.dtype}")
        if x.size == 0:
            raise NotImplementedError("an empty array has no rows")


def _inverse(x, eps):
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def _pull(x, gain, dy, eps):
    """Gradient by x, and the summands of the gradient by the gain; all float32 [rows, D]."""
    inverse = _inverse(x, eps)
    hat = x * inverse
    h = dy * gain
    return (h - hat * jnp.mean(h * hat, axis=-1, keepdims=True)) * inverse, dy * hat


def _wide(ref):
    return ref[...].astype(jnp.float32)


def _norm_kernel(s, count, x, gain, y):
    del count
    wide = _wide(x)
    y[...] = (wide * _inverse(wide, s.eps) * gain[...]).astype(y.dtype)


def _norm_gradient_kernel(s, count, x, dy, gain, dx, dgain):
    gradient, summands = _pull(_wide(x), gain[...], _wide(dy), s.eps)
    dx[...] = gradient.astype(dx.dtype)
    _accumulate(count, dgain, summands)


def _step_kernel(s, count, x, branch, *refs):
    del count
    *post, following_gain, stream, following = refs
    added = _wide(branch)
    if s.post:
        added = added * _inverse(added, s.eps) * post[0][...]
    stream[...] = (_wide(x) + added).astype(stream.dtype)
    wide = _wide(stream)  # The second norm sees the rounded stream.
    following[...] = (wide * _inverse(wide, s.eps) * following_gain[...]).astype(following.dtype)


def _step_gradient_kernel(s, count, stream, d_stream, d_following, *refs):
    if s.post:
        branch, post_gain, gain, dx, d_branch, d_gain, d_post = refs
    else:
        gain, dx, d_gain = refs
    gradient, summands = _pull(_wide(stream), gain[...], _wide(d_following), s.eps)
    gradient = gradient + _wide(d_stream)
    dx[...] = gradient.astype(dx.dtype)
    _accumulate(count, d_gain, summands)
    if s.post:
        gradient, summands = _pull(_wide(branch), post_gain[...], gradient, s.eps)
        d_branch[...] = gradient.astype(d_branch.dtype)
        _accumulate(count, d_post, summands)


def _accumulate(count, sums, summands):
    """Adds the rows of the block that exist to the sums; the last block may reach past them."""
    block = pl.program_id(0)

    @pl.when(block == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    row = jax.lax.broadcasted_iota(jnp.int32, summands.shape, 0) + block * summands.shape[0]
    sums[...] += jnp.sum(jnp.where(row < count, summands, 0.0), axis=0, keepdims=True)


def _call(body, static, rows, gains, outputs, sums=0):
    """One kernel over blocks of rows.

    Args:
      body: kernel body.
      static: what is fixed at trace time.
      rows: arrays [R, D].
      gains: arrays [D].
      outputs: types of the outputs [R, D].
      sums: number of float32 [1, D] outputs that are summed over the grid.

    Returns:
      All outputs.
    """
    count, width = rows[0].shape
    block = max(16, min(512, _BLOCK_BYTES // (4 * width) // 16 * 16))
    block = min(block, -(-count // 16) * 16)
    by_rows = pl.BlockSpec((block, width), lambda i: (i, 0))
    whole = pl.BlockSpec((1, width), lambda i: (0, 0))
    shape = functools.partial(jax.ShapeDtypeStruct, (count, width))
    return pl.pallas_call(
        functools.partial(body, static, count),
        grid=(-(-count // block),),
        in_specs=[by_rows] * len(rows) + [whole] * len(gains),
        out_specs=[by_rows] * len(outputs) + [whole] * sums,
        out_shape=[shape(dtype) for dtype in outputs]
        + [jax.ShapeDtypeStruct((1, width), jnp.float32)] * sums,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary" if sums else "parallel",),
            vmem_limit_bytes=_VMEM_LIMIT,
        ),
        interpret=static.interpret,
        name=f"rms_norm{body.__name__}",
    )(*rows, *(gain.astype(jnp.float32)[None] for gain in gains))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(static, x, scale):
    return _norm_forward(static, x, scale)[0]


def _norm_forward(static, x, scale):
    (y,) = _call(_norm_kernel, static, [x], [scale], [x.dtype])
    return y, (x, scale)


def _norm_backward(static, residuals, dy):
    x, scale = residuals
    dx, sums = _call(_norm_gradient_kernel, static, [x, dy], [scale], [x.dtype], sums=1)
    return dx, sums[0].astype(scale.dtype)


_norm.defvjp(_norm_forward, _norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(static, x, branch, post_scale, next_scale):
    return _step_forward(static, x, branch, post_scale, next_scale)[0]


def _step_forward(static, x, branch, post_scale, next_scale):
    gains = [post_scale, next_scale] if static.post else [next_scale]
    stream, following = _call(_step_kernel, static, [x, branch], gains, [x.dtype, x.dtype])
    # Without a post-norm the gradient needs of the branch its type alone.
    kept = branch if static.post else branch[:0]
    return (stream, following), (stream, kept, post_scale, next_scale)


def _step_backward(static, residuals, cotangents):
    stream, branch, post_scale, next_scale = residuals
    rows = [stream, *cotangents]
    if not static.post:
        dx, d_gain = _call(
            _step_gradient_kernel, static, rows, [next_scale], [stream.dtype], sums=1
        )
        return dx, dx.astype(branch.dtype), None, d_gain[0].astype(next_scale.dtype)
    dx, d_branch, d_gain, d_post = _call(
        _step_gradient_kernel, static, [*rows, branch], [post_scale, next_scale],
        [stream.dtype, branch.dtype], sums=2,
    )  # fmt: skip
    return (
        dx,
        d_branch,
        d_post[0].astype(post_scale.dtype),
        d_gain[0].astype(next_scale.dtype),
    )


_step.defvjp(_step_forward, _step_backward)
