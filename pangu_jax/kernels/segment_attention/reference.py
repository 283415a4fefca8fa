"""The definition of segment attention in plain jnp: dense, differentiable, float64 when asked.

Every implementation is tested against this file. It materialises [B, N, T, S] and is meant for
tests, for reading, and (as implementation 'dense') for decoding steps.

Letters: B rows, T queries, S keys, N query heads, K key-value heads, G = N / K, H head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Name of an implementation's output and log-sums. A rematerialisation policy may keep what bears
# it, so that the backward pass alone is repeated.
ATTENTION_RESIDUALS = "segment_attention"


def visible(
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    window: int | None,
) -> jax.Array:
    """bool [B or 1, T, S]: which keys a query sees, from int32 [B or 1, T] and [B or 1, S]."""
    distance = q_positions[:, :, None] - kv_positions[:, None, :]
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if q_segment_ids is None:
        return mask
    same = q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]
    return mask & same & (q_segment_ids > 0)[:, :, None]


def row_order(length: int) -> jax.Array:
    """int32 [1, length]: the positions that None stands for."""
    return jnp.arange(length, dtype=jnp.int32)[None]


def segment_attention_reference(
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
) -> jax.Array:
    """Same arguments, shapes and meaning as `api.segment_attention`."""
    batch, queries, heads, width = q.shape
    if q_positions is None:
        q_positions = kv_positions = row_order(queries)
    acc = jnp.promote_types(q.dtype, jnp.float32)
    mask = visible(q_segment_ids, kv_segment_ids, q_positions, kv_positions, window)[:, None, None]
    grouped = q.reshape(batch, queries, k.shape[2], -1, width)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=acc)
    # A finite floor instead of -inf: a row that sees nothing stays free of NaN in its gradient.
    logits = jnp.where(mask, logits.astype(acc) * scale, jnp.finfo(acc).min)
    weights = jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0).astype(v.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v, preferred_element_type=acc)
    return out.astype(v.dtype).reshape(batch, queries, heads, width)
