"""Segment attention for NVIDIA Hopper GPUs through Pallas Mosaic GPU.

Status: compiled ahead of time for H100 (PTX and SASS) and run in interpret mode on CPU against the
float64 definition; not yet run on a GPU, so neither its results there nor its speed are known.

Serves bfloat16 and float16 with head widths up to 128 on compute capability 9.x, and raises
NotImplementedError otherwise. Sums are in float32; probabilities are rounded to the input type
before they multiply v. A tile of queries visits the range of key tiles that row order and the ids
leave over: exact for documents in row order, wider than needed for columns in permuted order.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.kernels import mosaic_gpu
from pangu_jax.kernels.segment_attention import pallas_gpu_common as common
from pangu_jax.kernels.segment_attention import pallas_gpu_kernels as kernels


def segment_attention_pallas_gpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    scale: float,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Arguments and value as in `api.segment_attention`; see the contract there.

    Args:
      interpret: run on CPU in Mosaic GPU interpret mode (tests only; also takes float32).

    Raises:
      NotImplementedError: for types, head widths or devices the kernel does not serve.
    """
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    spec, *arrays = _prepare(q, k, v, ids, scale, window, interpret)
    return _from_heads(_attention(spec, *arrays), q)


def attend_forward_pallas_gpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    scale: float,
    window: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and values as in `parts.attend_forward`; raises as the function above does.

    The kernel hands its result out in the type of v, so a part is rounded before it is float32.
    """
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    spec, q_heads, k, v, ids = _prepare(q, k, v, ids, scale, window, interpret)
    out, log_sum = kernels.forward(spec, ids, q_heads, k, v)
    log_sum = log_sum.reshape(*log_sum.shape[:2], -1)[:, :, : q.shape[1]]
    lse = jnp.where(log_sum > common.START, log_sum * math.log(2), -jnp.inf)
    return _from_heads(out, q).astype(jnp.float32), jnp.moveaxis(lse, 1, 2)


def attend_backward_pallas_gpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    scale: float,
    window: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arguments and values as in `parts.attend_backward`; raises as the function above does.

    As in the forward direction, a part is rounded to the type of q before it is float32.
    """
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    spec, q_heads, k_heads, v_heads, ids = _prepare(q, k, v, ids, scale, window, interpret)
    tiles = spec.tiles[0]
    # Rows that see nothing are masked; a finite number there keeps the exponential finite too.
    log_sum = jnp.where(jnp.isneginf(lse), 0, lse * math.log2(math.e))
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    sums = jnp.moveaxis(jnp.stack([log_sum, delta], axis=3), 1, 3)  # [B, N, 2, T]
    sums = mosaic_gpu.pad_axis(sums, 3, tiles * mosaic_gpu.TILE)
    sums = jnp.moveaxis(sums.reshape(*sums.shape[:3], tiles, mosaic_gpu.TILE), 3, 2)
    g = mosaic_gpu.pad_heads(d_out.astype(v.dtype), tiles, spec.width)
    dq = kernels.query_gradient(spec, ids, q_heads, k_heads, v_heads, g, sums)
    dk, dv = kernels.key_gradients(spec, ids, q_heads, k_heads, v_heads, g, sums)
    return tuple(_from_heads(x, y).astype(jnp.float32) for x, y in ((dq, q), (dk, k), (dv, v)))


def _prepare(q, k, v, ids, scale, window, interpret):
    """(static facts, q [B, N, I * 64, H], k and v [B, K, J * 64, H], ids by tile)."""
    q_segment_ids, kv_segment_ids, q_positions, kv_positions = ids
    mosaic_gpu.check_supported(q, interpret)
    mosaic_gpu.check_supported(k, interpret)
    lengths = q.shape[1], k.shape[1]
    tiles = tuple(-(-length // mosaic_gpu.TILE) for length in lengths)
    if q_positions is not None and q_segment_ids is None:
        # Only the segment id 0 of what is padded tells it from real keys.
        q_segment_ids = jnp.ones_like(q_positions)
        kv_segment_ids = jnp.ones_like(kv_positions)
    ids = common.prepare(
        tiles, lengths, q_segment_ids, kv_segment_ids, q_positions, kv_positions, window
    )
    spec = common.Spec(
        scale=float(scale),
        window=window,
        dtype=np.dtype(q.dtype),
        tiles=tiles,
        groups=q.shape[2] // k.shape[2],
        width=mosaic_gpu.pad_width(q.shape[3]),
        shared_ids=ids[0].shape[0] == 1,
        interpret=interpret,
    )
    q, k, v = (
        mosaic_gpu.pad_heads(x, tiles[side], spec.width) for x, side in ((q, 0), (k, 1), (v, 1))
    )
    return spec, q, k, v, ids


def _from_heads(x, like):
    """[B, heads, length, width] -> [B, t, heads, h], the shape of `like`."""
    return jnp.moveaxis(x[:, :, : like.shape[1], : like.shape[3]], 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec, q, k, v, ids):
    return _forward(spec, q, k, v, ids)[0]


def _forward(spec, q, k, v, ids):
    out, log_sum = kernels.forward(spec, ids, q, k, v)
    return out, (q, k, v, ids, out, log_sum)


def _backward(spec, residuals, g):
    q, k, v, ids, out, log_sum = residuals
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    sums = jnp.stack([log_sum, delta.reshape(log_sum.shape)], axis=3)
    dq = kernels.query_gradient(spec, ids, q, k, v, g, sums)
    dk, dv = kernels.key_gradients(spec, ids, q, k, v, g, sums)
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)
