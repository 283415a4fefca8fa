"""Segment attention by the splash kernel for TPUs that JAX brings along.

That kernel orders tokens by their place in the row and lets padding see padding; here its rows of
padding are zeroed. Never run on a TPU so far: checked in interpret mode and compiled ahead of time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_LANES = 128


def segment_attention_splash(
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
    block: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Arguments and value as in `api.segment_attention`; the factor `scale` is rounded into q.

    Args:
      block: positions of a block, a multiple of 128; 512 or less for shorter rows if None.
      interpret: any device, for tests.

    Raises:
      NotImplementedError: for given positions, for types other than float32 and bfloat16, and
        where this JAX brings no splash kernel.
    """
    if q_positions is not None or kv_positions is not None:
        raise NotImplementedError("splash is reached without positions: row order only")
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"splash takes float32 and bfloat16, not {q.dtype}")
    if q.size == 0:
        raise NotImplementedError("an empty batch has no blocks")
    try:
        from jax.experimental.pallas.ops.tpu import splash_attention as splash
    except ImportError as error:
        raise NotImplementedError(f"this JAX brings no splash kernel: {error}") from error
    length, heads, width = q.shape[1:]
    block = block or min(512, -(-length // _LANES) * _LANES)
    full = -(-length // block) * block
    shape = (full, full)
    mask = splash.CausalMask(shape)
    if window is not None:
        mask = splash.LocalMask(shape, (window - 1, 0), 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**{f"block_{name}": block for name in names}),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    arrays = [_to_heads(x, full) for x in (q, k, v)]
    if q_segment_ids is None:
        out = jax.vmap(kernel)(*arrays)
    else:
        ids = [jnp.pad(x, ((0, 0), (0, full - length))) for x in (q_segment_ids, kv_segment_ids)]
        out = jax.vmap(kernel)(*arrays, splash.SegmentIds(*ids))
    out = jnp.moveaxis(out[:, :, :length, :width], 1, 2)
    if q_segment_ids is None:
        return out
    # This also stops every gradient of padding: only padding sees padding.
    return jnp.where((q_segment_ids > 0)[:, :, None, None], out, 0)


def _to_heads(x, length):
    """[B, t, heads, h] -> [B, heads, length, width], width a multiple of 128."""
    missing = ((0, 0), (0, 0), (0, length - x.shape[1]), (0, -x.shape[3] % _LANES))
    return jnp.pad(jnp.moveaxis(x, 2, 1), missing)
