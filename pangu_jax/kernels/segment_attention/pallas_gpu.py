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
    mosaic_gpu.check_supported(q, interpret)
    mosaic_gpu.check_supported(k, interpret)
    lengths, width = (q.shape[1], k.shape[1]), q.shape[3]
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
        width=mosaic_gpu.pad_width(width),
        shared_ids=ids[0].shape[0] == 1,
        interpret=interpret,
    )
    q, k, v = (
        mosaic_gpu.pad_heads(x, tiles[side], spec.width) for x, side in ((q, 0), (k, 1), (v, 1))
    )
    out = _attention(spec, q, k, v, ids)
    return jnp.moveaxis(out[:, :, : lengths[0], :width], 1, 2)


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
