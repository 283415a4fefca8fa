"""Decode attention for NVIDIA Hopper GPUs through Pallas Mosaic GPU: split-K flash decoding.

A block of one warpgroup takes all queries of one key-value head of one row (64 at most) over a
share of the row's tiles of 64 slots; tiles come by TMA from the pages where they lie. Shares make
blocks enough for all processors where there are few rows; each writes its own result and log-sum,
which XLA combines, so that results repeat bit for bit.

Status: run on an H100 against the float32 definition; speed in docs/kernels.md.

Serves bfloat16 and float16 (queries and pages alike) with head widths 32, 64 and 128 and pages of
multiples of 64 slots on compute capability 9.x, and raises NotImplementedError otherwise. Sums are
in float32; probabilities are rounded to the input type before they multiply v.

Letters: B rows, C queries of a row, N query heads, K key-value heads, G = N / K, H head width,
P pages of the pool, M pages of a row, L shares of a row.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels import mosaic_gpu
from pangu_jax.kernels.mosaic_gpu import TILE, Ops, pad_axis, ring, struct

# Logit of what is masked, and the first running maximum. The exponential of their difference is
# zero, so the weights of a query that has seen nothing yet are zero without a second mask.
_FLOOR = float(np.finfo(np.float32).min)
_START = -1e30
_STAGES = 4
_BLOCKS = 2 * 132  # Blocks that occupy a Hopper GPU; not tuned.
_LEAST_TILES = 4  # Of a share.


@dataclasses.dataclass(frozen=True)
class _Spec:
    """Static facts of a call. tiles: of a page. groups: G."""

    scale_base2: float
    window: int | None
    dtype: np.dtype
    width: int
    tiles: int
    interpret: bool


def shares(batch: int, kv_heads: int, tiles: int) -> int:
    """L: how many blocks divide the tiles of a row among them."""
    wanted = -(-_BLOCKS // (batch * kv_heads))
    return max(1, min(wanted, -(-tiles // _LEAST_TILES)))


def decode_attention_pallas_gpu(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    block_tables: jax.Array,
    lengths: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    shares_of_row: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Arguments and value as in `api.decode_attention`, with q [B, C, N, H].

    Args:
      shares_of_row: L; `shares` if None.
      interpret: run on CPU in Mosaic GPU interpret mode (tests only; also takes float32).

    Raises:
      NotImplementedError: for what the kernel does not serve, as named above.
    """
    batch, queries, heads, width = q.shape
    kv_heads, page = k_pages.shape[1:3]
    groups, pages = heads // kv_heads, block_tables.shape[1]
    mosaic_gpu.check_supported(q, interpret)
    mosaic_gpu.check_supported(block_tables, True)  # Not empty; its type is checked.
    if k_pages.dtype != q.dtype:
        raise NotImplementedError(f"queries are {q.dtype} and pages {k_pages.dtype}")
    if width not in mosaic_gpu.WIDTHS:
        raise NotImplementedError(f"head width {width}; the kernel takes {mosaic_gpu.WIDTHS}")
    if page % TILE:
        raise NotImplementedError(f"pages of {page} slots; the kernel takes multiples of {TILE}")
    if queries * groups > TILE:
        raise NotImplementedError(
            f"{queries} queries of {groups} heads per key-value head; {TILE} together is the most"
        )
    spec = _Spec(
        scale_base2=float(scale) * math.log2(math.e),
        window=window,
        dtype=np.dtype(q.dtype),
        width=width,
        tiles=page // TILE,
        interpret=interpret,
    )
    count = shares_of_row or shares(batch, kv_heads, pages * spec.tiles)
    # [B, C, K, G, H] -> [B, K, 64, H], and the position of every row of that; -1 for padding.
    split = jnp.moveaxis(q.reshape(batch, queries, kv_heads, groups, width), 1, 2)
    split = pad_axis(split.reshape(batch, kv_heads, queries * groups, width), 2, TILE)
    chunk = jnp.repeat(jnp.arange(queries, dtype=jnp.int32), groups)
    at = pad_axis(lengths[:, None] - queries + chunk + 1, 1, TILE) - 1
    spans = _spans(lengths, queries, window, count)
    out, log_sum = _call(spec, split, at, k_pages, v_pages, block_tables, lengths, spans)
    weights = jnp.exp2(log_sum - log_sum.max(axis=2, keepdims=True))[..., None]
    out = (out * weights).sum(axis=2) / weights.sum(axis=2)
    out = out[:, :, : queries * groups].reshape(batch, kv_heads, queries, groups, width)
    return jnp.moveaxis(out, 2, 1).reshape(q.shape).astype(q.dtype)


def _spans(lengths, queries, window, count):
    """int32 [B, L, 2]: first and past-the-last tile of each share of a row."""
    last = (lengths + TILE - 1) // TILE
    first = jnp.zeros_like(last)
    if window is not None:
        first = jnp.maximum(lengths - queries - window + 1, 0) // TILE
    share = (last - first + count - 1) // count
    edges = first[:, None] + share[:, None] * jnp.arange(count + 1, dtype=jnp.int32)
    edges = jnp.minimum(edges, last[:, None])
    return jnp.stack([edges[:, :-1], edges[:, 1:]], axis=-1)


def _call(spec, q, at, k_pages, v_pages, block_tables, lengths, spans):
    """Per share: float32 result [B, K, L, 64, H] and log2 of the sum of exponentials [B, K, L, 64],
    _START where nothing is seen."""
    ops = Ops(spec.interpret)
    batch, kv_heads = q.shape[:2]
    count = spans.shape[1]
    queries_at = at.min(axis=1, where=at >= 0, initial=np.iinfo(np.int32).max)
    # Of each row: its length, and the first slot that one of its queries sees.
    oldest = jnp.zeros_like(lengths)
    if spec.window is not None:
        oldest = jnp.where(lengths > 0, jnp.maximum(queries_at - spec.window + 1, 0), 0)
    seen = jnp.stack([oldest, lengths], axis=1)

    def kernel(q_ref, at_ref, k_ref, v_ref, table, seen_ref, span, out, log_sum, *scratch):
        q_tile, k_tiles, v_tiles, at_tile, out_tile, sum_tile, own, ready = scratch
        share, kv, b = (lax.axis_index(name) for name in ("l", "k", "b"))
        first, last = span[b, share, 0], span[b, share, 1]
        plgpu.copy_gmem_to_smem(q_ref.at[b, kv], q_tile, own)
        plgpu.copy_gmem_to_smem(at_ref.at[b], at_tile, own)
        plgpu.barrier_wait(own)

        def issue(j, slot):
            number = table[b, lax.div(j, jnp.int32(spec.tiles))]
            within = pl.ds(lax.rem(j, jnp.int32(spec.tiles)) * TILE, TILE)
            for source, tiles in ((k_ref, k_tiles), (v_ref, v_tiles)):
                copied = source.at[number, kv, within]
                plgpu.copy_gmem_to_smem(copied, tiles.at[slot], ready.at[slot])

        def consume(j, slot, carry):
            top, total, result = carry
            plgpu.barrier_wait(ready.at[slot])
            start = j * TILE
            _clear_unseen(spec, ops, v_tiles.at[slot], start, seen_ref[b, 0], seen_ref[b, 1])
            logits = ops.product([(q_tile, k_tiles.at[slot])]) * spec.scale_base2
            distance = ops.vector(at_tile, 0) - (ops.iota(1) + start)
            mask = distance >= 0
            if spec.window is not None:
                mask = mask & (distance < spec.window)
            logits = jnp.where(mask, logits, _FLOOR)
            new_top = jnp.maximum(top, logits.max(axis=1))
            p = jnp.exp2(logits - ops.spread(new_top))
            shrink = jnp.exp2(top - new_top)
            total = total * shrink + p.sum(axis=1)
            result = result * ops.spread(shrink, spec.width)
            result = ops.accumulate(result, p.astype(spec.dtype), v_tiles.at[slot])
            return new_top, total, result

        start = ops.full_rows(jnp.float32(_START)), ops.full_rows(jnp.float32(0))
        start = (*start, ops.full(jnp.float32(0), spec.width))
        top, total, result = ring(ops, first, last, _STAGES, issue, consume, start)
        some = jnp.where(total > 0, total, 1.0)
        out_tile[...] = result / ops.spread(some, spec.width)
        sum_tile[...] = top + jnp.log(some) * math.log2(math.e)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_tile, out.at[b, kv, share])
        plgpu.copy_smem_to_gmem(sum_tile, log_sum.at[b, kv, share])
        plgpu.wait_smem_to_gmem(0)

    tile = TILE, spec.width
    return mosaic_gpu.launch(
        spec.interpret,
        kernel,
        (count, kv_heads, batch),
        ("l", "k", "b"),
        [
            struct((batch, kv_heads, count, *tile), jnp.float32),
            struct((batch, kv_heads, count, TILE), jnp.float32),
        ],
        [
            mosaic_gpu.swizzled(tile, spec.dtype),
            mosaic_gpu.swizzled((_STAGES, *tile), spec.dtype),
            mosaic_gpu.swizzled((_STAGES, *tile), spec.dtype),
            plgpu.SMEM((TILE,), jnp.int32),
            _float32_tile(spec),
            plgpu.SMEM((TILE,), jnp.float32),
            plgpu.Barrier(num_arrivals=2),
            plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
        ],
        q, at, k_pages, v_pages, block_tables, seen, spans,
    )  # fmt: skip


def _float32_tile(spec):
    """Shared memory for a result [64, H]; every width that is served fills a 128-byte swizzle."""
    if spec.interpret:
        return plgpu.SMEM((TILE, spec.width), jnp.float32)
    transforms = plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM((TILE, spec.width), jnp.float32, transforms=transforms)


def _clear_unseen(spec, ops, tile, start, oldest, length):
    """Zeros in the slots of v that no query sees: they may hold anything, NaN too, which a weight
    of zero would let through. Only the first and the last tile of a row can have some."""

    @pl.when((start < oldest) | (start + TILE > length))
    def _():
        shape = (TILE, spec.width)
        if spec.interpret:
            slot = lax.broadcasted_iota(jnp.int32, shape, 0) + start
        else:
            slot = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=plgpu.Layout.WGMMA) + start
        values = ops.matrix(tile).astype(jnp.float32)
        values = jnp.where((slot >= oldest) & (slot < length), values, 0.0)
        tile[...] = values.astype(spec.dtype)
        plgpu.commit_smem()
