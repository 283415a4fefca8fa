"""Segment attention for NVIDIA Hopper GPUs through Pallas Mosaic GPU.

Two sets of kernels: the warp-specialised ones of `pallas_gpu_wide` for head widths above 32, and
those of `pallas_gpu_kernels`, one warpgroup on 64 x 64 tiles, for the rest.

Status: both have run on an H100 against the float32 definition; speed in docs/kernels.md.

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
from jax.ad_checkpoint import checkpoint_name

from pangu_jax.kernels import mosaic_gpu
from pangu_jax.kernels.segment_attention import pallas_gpu_common as common
from pangu_jax.kernels.segment_attention import pallas_gpu_kernels as kernels
from pangu_jax.kernels.segment_attention import pallas_gpu_wide as wide
from pangu_jax.kernels.segment_attention import pallas_gpu_wide_backward as wide_backward
from pangu_jax.kernels.segment_attention import pallas_gpu_wide_forward as wide_forward
from pangu_jax.kernels.segment_attention.reference import ATTENTION_RESIDUALS


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
    tiles: wide.Config | str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Arguments and value as in `api.segment_attention`; see the contract there.

    Args:
      tiles: None picks the kernels; a Config demands the warp-specialised ones with its settings,
        'narrow' those on 64 x 64 tiles.
      interpret: run on CPU in Mosaic GPU interpret mode (tests only; also takes float32).

    Raises:
      NotImplementedError: for types, head widths or devices the kernel does not serve.
    """
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    spec, *arrays = _prepare(q, k, v, ids, scale, window, tiles, interpret)
    return _cut(spec, _attention(spec, *arrays), q)


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
    tiles: wide.Config | str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and values as in `parts.attend_forward`; raises as the function above does.

    The kernel hands its result out in the type of v, so a part is rounded before it is float32.
    """
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    spec, *arrays = _prepare(q, k, v, ids, scale, window, tiles, interpret)
    out, (*_, log_sum) = _forward(spec, *arrays)
    log_sum = log_sum.reshape(*log_sum.shape[:2], -1)[:, :, : q.shape[1]]
    lse = jnp.where(log_sum > common.START, log_sum * math.log(2), -jnp.inf)
    return _cut(spec, out, q).astype(jnp.float32), jnp.moveaxis(lse, 1, 2)


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
    tiles: wide.Config | str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arguments and values as in `parts.attend_backward`; raises as the function above does.

    As in the forward direction, a part is rounded to the type of q before it is float32.
    """
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    spec, q_tiles, k_tiles, v_tiles, ids = _prepare(q, k, v, ids, scale, window, tiles, interpret)
    # Rows that see nothing are masked; a finite number there keeps the exponential finite too.
    log_sum = jnp.where(jnp.isneginf(lse), 0, lse * math.log2(math.e))
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    length = q_tiles.shape[1 if isinstance(spec, wide.Spec) else 2]
    log_sum, delta = (
        mosaic_gpu.pad_axis(jnp.moveaxis(x, 1, 2), 2, length) for x in (log_sum, delta)
    )
    g = _pad(spec, d_out.astype(v.dtype), 0)
    gradients = _gradients(spec, q_tiles, k_tiles, v_tiles, ids, g, log_sum, delta)
    likes = (q, k, v)
    return tuple(
        _cut(spec, x, like).astype(jnp.float32) for x, like in zip(gradients, likes, strict=True)
    )


def _prepare(q, k, v, ids, scale, window, tiles, interpret):
    """(static facts, q, k and v padded to whole tiles, ids), for the kernels that serve the call.

    Arrays are [B, T, N, H] for the warp-specialised kernels, [B, N, T, H] for the others.
    """
    mosaic_gpu.check_supported(q, interpret)
    mosaic_gpu.check_supported(k, interpret)
    width = mosaic_gpu.pad_width(q.shape[3])
    # The maximum is taken before the scale is applied, so the scale must keep the order.
    if tiles is None:
        tiles = wide.Config() if width > 32 and scale > 0 and not interpret else "narrow"
    if isinstance(tiles, wide.Config):
        if scale <= 0:
            raise NotImplementedError(f"scale={scale} with tiles={tiles}; it must be above 0")
        spec, ids = _wide_facts(q, k, ids, scale, window, tiles, interpret)
    elif tiles == "narrow":
        spec, ids = _narrow_facts(q, k, ids, scale, window, width, interpret)
    else:
        raise ValueError(f"tiles={tiles!r}; a Config, 'narrow' or None is needed.")
    return spec, _pad(spec, q, 0), _pad(spec, k, 1), _pad(spec, v, 1), ids


def _wide_facts(q, k, ids, scale, window, config, interpret):
    lengths = wide.padded_lengths(q.shape[1], k.shape[1], config)
    mask, ids = wide.prepare_ids(lengths, *ids)
    spec = wide.Spec(
        scale=float(scale),
        window=window,
        dtype=np.dtype(q.dtype),
        lengths=lengths,
        groups=q.shape[2] // k.shape[2],
        width=max(64, mosaic_gpu.pad_width(q.shape[3])),
        mask=mask,
        shared_ids=mask == "order" or ids[0].shape[0] == 1,
        interpret=interpret,
        config=config,
    )
    return spec, ids


def _narrow_facts(q, k, ids, scale, window, width, interpret):
    q_segment_ids, kv_segment_ids, q_positions, kv_positions = ids
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
        width=width,
        shared_ids=ids[0].shape[0] == 1,
        interpret=interpret,
    )
    return spec, ids


def _pad(spec, x, side):
    """[B, n, heads, h] in the order and size that the kernels take; side 0 is queries, 1 keys."""
    if isinstance(spec, wide.Spec):
        return mosaic_gpu.pad_axis(mosaic_gpu.pad_axis(x, 1, spec.lengths[side]), 3, spec.width)
    return mosaic_gpu.pad_heads(x, spec.tiles[side], spec.width)


def _cut(spec, x, like):
    """What `_pad` made, or a kernel like it, back to the shape of `like`."""
    if not isinstance(spec, wide.Spec):
        x = jnp.moveaxis(x, 1, 2)
    return x[:, : like.shape[1], :, : like.shape[3]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec, q, k, v, ids):
    return _forward(spec, q, k, v, ids)[0]


def _forward(spec, q, k, v, ids):
    forward = wide_forward.forward if isinstance(spec, wide.Spec) else kernels.forward
    out, log_sum = checkpoint_name(forward(spec, ids, q, k, v), ATTENTION_RESIDUALS)
    return out, (q, k, v, ids, out, log_sum)


def _backward(spec, residuals, g):
    q, k, v, ids, out, log_sum = residuals
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    if isinstance(spec, wide.Spec):
        delta = jnp.moveaxis(delta, 1, 2)
    log_sum = log_sum.reshape(delta.shape)
    return *_gradients(spec, q, k, v, ids, g, log_sum, delta), None


def _gradients(spec, q, k, v, ids, g, log_sum, delta):
    """dq, dk and dv; log_sum and delta [B, N, T]."""
    if isinstance(spec, wide.Spec):
        dq = wide_backward.query_gradient(spec, ids, q, k, v, g, log_sum, delta)
        if spec.interpret:
            # Two kernels with threads that wait for each other must not share the callback threads
            # of a small machine: the second one takes something from the first.
            delta = delta + 0 * dq[0, 0, 0, 0]
        return dq, *wide_backward.key_gradients(spec, ids, q, k, v, g, log_sum, delta)
    by_tile = (*log_sum.shape[:2], spec.tiles[0], 1, mosaic_gpu.TILE)
    sums = jnp.concatenate([x.reshape(by_tile) for x in (log_sum, delta)], axis=3)
    dq = kernels.query_gradient(spec, ids, q, k, v, g, sums)
    return dq, *kernels.key_gradients(spec, ids, q, k, v, g, sums)


_attention.defvjp(_forward, _backward)
