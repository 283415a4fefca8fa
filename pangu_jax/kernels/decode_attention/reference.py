"""The definition of decode attention in plain jnp: all pages gathered, the whole map at once.

Every implementation is tested against this file. Inference only: it can be differentiated as jnp,
but no implementation promises that.

Letters: B rows, C queries of a row, N query heads, K key-value heads, G = N / K, H head width,
P pages of the pool, M pages of a row, S = M * page slots of a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pangu_jax.kernels.decode_attention.pages import gather_pages


def visible(lengths: jax.Array, queries: int, slots: int, window: int | None) -> jax.Array:
    """bool [B, C, S]: slots that a query sees, from int32 lengths [B]."""
    at = lengths[:, None] - queries + jnp.arange(queries, dtype=jnp.int32)  # [B, C]
    distance = at[:, :, None] - jnp.arange(slots, dtype=jnp.int32)
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def decode_attention_reference(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    block_tables: jax.Array,
    lengths: jax.Array,
    *,
    scale: float,
    window: int | None = None,
) -> jax.Array:
    """Arguments and value as in `api.decode_attention`, with q [B, C, N, H]."""
    batch, queries, heads, width = q.shape
    kv_heads = k_pages.shape[1]
    acc = jnp.promote_types(q.dtype, jnp.float32)
    k, v = (gather_pages(x, block_tables).astype(acc) for x in (k_pages, v_pages))
    mask = visible(lengths, queries, k.shape[2], window)
    # What nobody sees may hold anything, NaN too, which a weight of zero would let through.
    v = jnp.where(mask.any(axis=1)[:, None, :, None], v, 0)
    grouped = q.astype(acc).reshape(batch, queries, kv_heads, heads // kv_heads, width)
    mask = mask[:, :, None, None]
    logits = jnp.einsum("bckgh,bksh->bckgs", grouped, k, preferred_element_type=acc) * scale
    weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(acc).min), axis=-1)
    weights = jnp.where(mask, weights, 0)
    out = jnp.einsum("bckgs,bksh->bckgh", weights, v, preferred_element_type=acc)
    return out.reshape(q.shape).astype(q.dtype)
