"""Decode attention as a Pallas TPU kernel: flash decoding over the pages of a row.

A grid step works on a few pages of one row and on all its heads; the block table and the lengths
come by scalar prefetch, so that the pages named in the table are fetched from where they lie, while
the step before computes. Steps past a row's last page compute nothing and fetch nothing; with a
window the steps start at the first page that is seen.

Never run on a TPU so far: checked in interpret mode, lowered, and compiled ahead of time.

Letters: B rows, C queries of a row, N query heads, K key-value heads, G = N / K, H head width,
P pages of the pool, M pages of a row, R pages of a step, Q = C * G rows of queries per kv head.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Logit of what is masked, and the first running maximum. The exponential of their difference is
# zero, so the weights of a query that has seen nothing yet are zero without a second mask.
_FLOOR = float(jnp.finfo(jnp.float32).min)
_START = -1e30
_LANES = 128
_ROWS = 16  # Queries are padded to whole tiles of 16-bit values.
# int32 entries of the block tables that scalar memory is trusted with (of 1 MiB on a v5p).
_MAX_TABLE = 160 * 1024
_MAX_QUERY_ROWS = 4096  # K * Q, of which float32 sums are kept.
_VMEM_LIMIT = 64 * 2**20


class _Static(NamedTuple):
    """What is fixed at trace time. step: R; dtype: of the products."""

    scale: float
    window: int | None
    queries: int
    groups: int
    page: int
    pages: int
    step: int
    dtype: jnp.dtype


def step_pages(page: int, pages: int) -> int:
    """Pages of a step: about 256 slots, 8 pages at most. Not measured on a TPU."""
    return max(1, min(pages, 8, 256 // page))


def decode_attention_pallas_tpu(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    block_tables: jax.Array,
    lengths: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    pages_per_step: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Arguments and value as in `api.decode_attention`, with q [B, C, N, H].

    Args:
      pages_per_step: R; `step_pages` if None.
      interpret: any device, for tests.

    Raises:
      NotImplementedError: for types other than float32 and bfloat16, pages that are no multiple of
        8 (16 for bfloat16), chunks of many queries, tables beyond scalar memory.
    """
    batch, queries, heads, width = q.shape
    _, kv_heads, page, _ = k_pages.shape
    pages = block_tables.shape[1]
    for x in (q, k_pages):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise NotImplementedError(f"the TPU kernel takes float32 and bfloat16, not {x.dtype}")
    if q.size == 0 or pages == 0:
        raise NotImplementedError("an empty batch has no pages")
    sublanes = 32 // k_pages.dtype.itemsize
    if page % sublanes:
        raise NotImplementedError(f"pages of {page} {k_pages.dtype} slots; multiples of {sublanes}")
    if block_tables.size > _MAX_TABLE:
        raise NotImplementedError(
            f"block tables of {block_tables.size} entries are more than the {_MAX_TABLE} that "
            "scalar memory is trusted with: give larger pages, or fewer rows"
        )
    rows = -(-queries * heads // kv_heads // _ROWS) * _ROWS
    if kv_heads * rows > _MAX_QUERY_ROWS:
        raise NotImplementedError(
            f"{queries} queries of {heads} heads; {_MAX_QUERY_ROWS} together is the most"
        )
    static = _Static(
        scale=float(scale),
        window=window,
        queries=queries,
        groups=heads // kv_heads,
        page=page,
        pages=pages,
        step=pages_per_step or step_pages(page, pages),
        dtype=jnp.promote_types(q.dtype, k_pages.dtype),
    )
    # [B, C, K, G, H] -> [B, K, Q, H]
    split = q.reshape(batch, queries, kv_heads, static.groups, width)
    split = jnp.moveaxis(split, 1, 2).reshape(batch, kv_heads, -1, width)
    split = jnp.pad(split, ((0, 0), (0, 0), (0, rows - split.shape[2]), (0, 0)))
    out = _call(static, interpret, split, k_pages, v_pages, block_tables, lengths)
    out = out[:, :, : queries * static.groups]
    out = out.reshape(batch, kv_heads, queries, static.groups, width)
    return jnp.moveaxis(out, 2, 1).reshape(q.shape)


def decode_attention_interpret(*args, **kwargs) -> jax.Array:
    """`decode_attention_pallas_tpu` in interpret mode: any device, for tests."""
    return decode_attention_pallas_tpu(*args, interpret=True, **kwargs)


def _first_page(s: _Static, length):
    """Number of the first page of a row that is seen."""
    if s.window is None:
        return 0
    return jnp.maximum(length - s.queries - s.window + 1, 0) // s.page


def _steps(s: _Static) -> int:
    """Steps that every row can do with."""
    pages = s.pages
    if s.window is not None:  # So many slots are seen; they may begin and end inside a page.
        pages = min(pages, (s.queries + s.window - 3) // s.page + 2)
    return -(-pages // s.step)


def _call(s: _Static, interpret, q, k_pages, v_pages, block_tables, lengths):
    batch, kv_heads, rows, width = q.shape

    def page_spec(place):
        def index(b, step, tables, lengths):
            last = jnp.maximum(lengths[b] - 1, 0) // s.page
            # Past the end the last page is named again: nothing is fetched for it.
            number = jnp.minimum(_first_page(s, lengths[b]) + step * s.step + place, last)
            return tables[b * s.pages + number], 0, 0, 0

        return pl.BlockSpec((1, kv_heads, s.page, width), index)

    own = pl.BlockSpec((1, kv_heads, rows, width), lambda b, step, tables, lengths: (b, 0, 0, 0))
    return pl.pallas_call(
        functools.partial(_kernel, s),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, _steps(s)),
            in_specs=[own, *[page_spec(place) for place in range(s.step)] * 2],
            out_specs=own,
            scratch_shapes=[
                pltpu.VMEM((kv_heads, rows, _LANES), jnp.float32),
                pltpu.VMEM((kv_heads, rows, _LANES), jnp.float32),
                pltpu.VMEM((kv_heads, rows, width), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_LIMIT
        ),
        interpret=interpret,
        name="decode_attention",
    )(block_tables.reshape(-1), lengths, q, *[k_pages] * s.step, *[v_pages] * s.step)


def _kernel(s: _Static, tables, lengths, q, *refs):
    """Grid (b, step): output [1, K, Q, H]."""
    del tables
    keys, values, (out, top, total, sums) = refs[: s.step], refs[s.step : -4], refs[-4:]
    b, step = pl.program_id(0), pl.program_id(1)
    length = lengths[b]

    @pl.when(step == 0)
    def _():
        top[...] = jnp.full_like(top, _START)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    for place in range(s.step):
        start = (_first_page(s, length) + step * s.step + place) * s.page

        @pl.when(start < length)
        def _(place=place, start=start):
            _add_page(s, start, length, q, keys[place], values[place], top, total, sums)

    @pl.when(step == pl.num_programs(1) - 1)
    def _():
        for kv in range(sums.shape[0]):
            seen = total[kv][:, :1]
            value = sums[kv] / jnp.where(seen > 0, seen, 1.0)
            out[0, kv] = value.astype(out.dtype)


def _add_page(s: _Static, start, length, q, keys, values, top, total, sums):
    rows = q.shape[2]
    # The position of each query less that of each slot; padded queries stand with the last.
    row = jax.lax.broadcasted_iota(jnp.int32, (rows, s.page), 0)
    at = jnp.minimum(row // s.groups, s.queries - 1) + (length - s.queries)
    distance = at - start - jax.lax.broadcasted_iota(jnp.int32, (rows, s.page), 1)
    mask = distance >= 0
    # Slots that no query sees may hold anything, NaN too, which a weight of zero would let through.
    slot = start + jax.lax.broadcasted_iota(jnp.int32, (s.page, values.shape[3]), 0)
    seen = slot < length
    if s.window is not None:
        mask &= distance < s.window
        seen &= slot > length - s.queries - s.window
    for kv in range(sums.shape[0]):
        logits = jax.lax.dot_general(
            q[0, kv].astype(s.dtype), keys[0, kv].astype(s.dtype), (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        logits = jnp.where(mask, logits * s.scale, _FLOOR)
        before = top[kv][:, :1]
        after = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
        weights = jnp.exp(logits - after)
        shrink = jnp.exp(before - after)
        value = jnp.where(seen, values[0, kv].astype(jnp.float32), 0).astype(s.dtype)
        more = jax.lax.dot_general(
            weights.astype(s.dtype), value, (((1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        summed = total[kv][:, :1] * shrink + jnp.sum(weights, axis=1, keepdims=True)
        top[kv] = jnp.broadcast_to(after, top.shape[1:])
        total[kv] = jnp.broadcast_to(summed, total.shape[1:])
        sums[kv] = sums[kv] * shrink + more
