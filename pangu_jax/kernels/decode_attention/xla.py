"""Decode attention in plain XLA operations: turns over groups of pages with a running softmax.

A turn gathers the same few pages of every row and multiplies them with all the row's queries. Turns
past the longest row, or before the window of all rows, are left out at run time. So temporaries are
those of one turn, and time follows the keys in use, not the size of the tables.

Letters: B rows, C queries of a row, N query heads, K key-value heads, G = N / K, H head width,
P pages of the pool, M pages of a row, R pages of a turn, S = R * page slots of a turn.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pangu_jax.kernels.decode_attention.reference import visible
from pangu_jax.kernels.implementation import current_platform

# Entries of a turn's logits [B, K, C * G, S], at most.
_MOST_LOGITS = 2**20


def turn_pages(batch: int, query_rows: int, page: int, pages: int) -> int:
    """Pages of a row that a turn works on.

    On CPU a turn takes about 2,048 slots over all rows (measured: docs/kernels.md), at most 512 of
    each, so that a short row in a wide table is cheap, and fewer where there are many queries; the
    65,536 for other devices are not measured.

    Args:
      batch: rows B. query_rows: N * C. page: slots of a page. pages: pages M of a row.
    """
    slots = 2048 if current_platform() == "cpu" else 65536
    slots = min(slots, _MOST_LOGITS // query_rows) // batch
    if current_platform() == "cpu":
        slots = min(slots, 512)
    return max(1, min(pages, slots // page))


def decode_attention_xla(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    block_tables: jax.Array,
    lengths: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    pages_per_turn: int | None = None,
) -> jax.Array:
    """Arguments and value as in `api.decode_attention`, with q [B, C, N, H].

    Args:
      pages_per_turn: R; `turn_pages` if None.
    """
    batch, queries, heads, width = q.shape
    kv_heads, page = k_pages.shape[1:3]
    pages = block_tables.shape[1]
    if q.size == 0 or pages == 0:
        return jnp.zeros_like(q)
    groups = heads // kv_heads
    turn = pages_per_turn or turn_pages(batch, heads * queries, page, pages)
    turns = -(-pages // turn)
    tables = jnp.pad(block_tables, ((0, 0), (0, turns * turn - pages)))
    acc = jnp.promote_types(q.dtype, jnp.float32)
    floor = jnp.finfo(acc).min
    scaled = q.astype(acc).reshape(batch, queries, kv_heads, groups, width) * scale
    scaled = jnp.moveaxis(scaled, 1, 2).reshape(batch, kv_heads, queries * groups, width)

    def visit(number, state):
        top, total, out = state
        ids = lax.dynamic_slice_in_dim(tables, number * turn, turn, axis=1)
        k, v = (_gathered(x, ids).astype(acc) for x in (k_pages, v_pages))
        mask = visible(lengths - number * turn * page, queries, turn * page, window)
        # What nobody sees may hold anything, NaN too, which a weight of zero would let through.
        v = jnp.where(mask.any(axis=1)[:, None, :, None], v, 0)
        mask = jnp.repeat(mask, groups, axis=1)[:, None] if queries > 1 else mask[:, None]
        logits = jnp.einsum("bkqh,bksh->bkqs", scaled, k, preferred_element_type=acc)
        logits = jnp.where(mask, logits, floor)
        new_top = jnp.maximum(top, logits.max(axis=-1))
        weights = jnp.where(mask, jnp.exp(logits - new_top[..., None]), 0)
        shrink = jnp.exp(top - new_top)
        more = jnp.einsum("bkqs,bksh->bkqh", weights, v, preferred_element_type=acc)
        return new_top, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + more

    rows = (batch, kv_heads, queries * groups)
    state = jnp.full(rows, floor, acc), jnp.zeros(rows, acc), jnp.zeros((*rows, width), acc)
    if turns == 1:
        state = visit(0, state)
    else:
        first, last = _span(lengths, queries, window, turn * page)
        state = lax.fori_loop(first, last, visit, state)
    _, total, out = state
    out = out / jnp.where(total > 0, total, 1)[..., None]
    out = jnp.moveaxis(out.reshape(batch, kv_heads, queries, groups, width), 2, 1)
    return out.reshape(q.shape).astype(q.dtype)


def _span(lengths, queries, window, size):
    """First turn, and the one past the last, that hold a visible slot of any row."""
    last = (lengths.max() + size - 1) // size
    if window is None:
        return jnp.zeros_like(last), last
    oldest = jnp.maximum(lengths - queries - window + 1, 0)
    return jnp.where(lengths > 0, oldest // size, last).min(), last


def _gathered(pages, ids):
    """[B, K, S, H]: the slots of pages int32 [B, R].

    A page's slots are one run of numbers to the gather, whose inner loop then is a copy, and come
    out where the product wants them.
    """
    count, kv_heads, size, width = pages.shape
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(1, 3), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    out = lax.gather(
        pages.reshape(count, kv_heads, size * width), ids[..., None], numbers,
        slice_sizes=(1, kv_heads, size * width), mode="promise_in_bounds",
    )  # fmt: skip
    return out.reshape(ids.shape[0], kv_heads, ids.shape[1] * size, width)
