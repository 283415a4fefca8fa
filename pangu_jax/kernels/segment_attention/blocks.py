"""Which pairs of query and key blocks hold at least one visible pair.

Letters: B rows, I query blocks, J key blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class WorkList(NamedTuple):
    """For query block i: visit key blocks keys[i, : count[i]]. keys (I, J), count (I,) int32."""

    keys: jax.Array | np.ndarray
    count: jax.Array | np.ndarray


def visible_blocks(
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    q_positions: jax.Array | None,
    kv_positions: jax.Array | None,
    *,
    blocks: tuple[int, int],
    sizes: tuple[int, int],
    window: int | None,
) -> jax.Array | np.ndarray:
    """bool (B or 1, I, J): pairs that must be visited; all others hold nothing visible.

    Without positions, row order rules the future and the window out while tracing. Documents, and
    the future where positions are given, are ruled out at run time from each block's smallest and
    largest (segment, position): O(B (T + S)) work beside O(B T S).

    Args:
      q_segment_ids, q_positions: int32 (B, I * sizes[0]) or None; kv_...: (B, J * sizes[1]).
      blocks: (I, J). sizes: positions of a query block and of a key block.
      window: as in `api.segment_attention`.
    """
    count_q, count_k = blocks
    active: jax.Array | np.ndarray = np.ones((1, *blocks), bool)
    if q_positions is None:
        first_q = np.arange(count_q)[:, None] * sizes[0]
        first_k = np.arange(count_k)[None, :] * sizes[1]
        active &= first_k <= first_q + sizes[0] - 1
        if window is not None:
            active &= first_q - (first_k + sizes[1] - 1) < window
    if q_segment_ids is not None:
        active = active & _may_see(
            q_segment_ids, kv_segment_ids, q_positions, kv_positions, blocks, sizes
        )
    return active


def whole_blocks(
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    q_positions: jax.Array | None,
    kv_positions: jax.Array | None,
    *,
    blocks: tuple[int, int],
    sizes: tuple[int, int],
    window: int | None,
) -> jax.Array | np.ndarray:
    """bool (B or 1, I, J): pairs in which every query sees every key, so that no mask is needed.

    Arguments as in `visible_blocks`.
    """

    def extremes(x, side, count):
        if x is None:
            first = np.arange(count)[None] * sizes[side]
            return first, first + sizes[side] - 1
        x = x.reshape(x.shape[0], count, sizes[side])
        return x.min(axis=2), x.max(axis=2)

    q_first, q_last = (x[:, :, None] for x in extremes(q_positions, 0, blocks[0]))
    k_first, k_last = (x[:, None, :] for x in extremes(kv_positions, 1, blocks[1]))
    whole = q_first >= k_last
    if window is not None:
        whole = whole & (q_last - k_first < window)
    if q_segment_ids is None:
        return whole
    q_low, q_high = (x[:, :, None] for x in extremes(q_segment_ids, 0, blocks[0]))
    k_low, k_high = (x[:, None, :] for x in extremes(kv_segment_ids, 1, blocks[1]))
    return whole & (q_low == k_high) & (q_high == k_low) & (q_low == q_high) & (q_low > 0)


def listed(active: jax.Array | np.ndarray) -> WorkList:
    """bool (..., I, J) as lists: the J's of each I that are true, in order, and how many."""
    numpy = np if isinstance(active, np.ndarray) else jnp
    keys = numpy.argsort(~active, axis=-1, stable=True).astype(numpy.int32)
    return WorkList(keys, numpy.sum(active, axis=-1, dtype=numpy.int32))


def work_list(
    q_segment_ids: jax.Array | None,
    kv_segment_ids: jax.Array | None,
    q_positions: jax.Array | None,
    kv_positions: jax.Array | None,
    *,
    blocks: tuple[int, int],
    sizes: tuple[int, int],
    window: int | None,
) -> WorkList:
    """The pairs that `visible_blocks` (same arguments) finds in any row, as lists."""
    active = visible_blocks(
        q_segment_ids, kv_segment_ids, q_positions, kv_positions,
        blocks=blocks, sizes=sizes, window=window,
    )  # fmt: skip
    return listed(active.any(axis=0))


def _may_see(q_segment_ids, kv_segment_ids, q_positions, kv_positions, blocks, sizes):
    def extremes(segments, positions, count, size):
        s = segments.reshape(segments.shape[0], count, size)
        big = jnp.iinfo(jnp.int32).max
        low = jnp.min(jnp.where(s > 0, s, big), axis=2)
        high = jnp.max(s, axis=2)  # 0 where all is padding: then low > high
        if positions is None:
            return low, high, None, None
        p = positions.reshape(s.shape)
        first = jnp.min(jnp.where(s == low[..., None], p, big), axis=2)
        last = jnp.max(jnp.where(s == high[..., None], p, -big), axis=2)
        return low, high, first, last

    q_low, q_high, _, q_last = extremes(q_segment_ids, q_positions, blocks[0], sizes[0])
    k_low, k_high, k_first, _ = extremes(kv_segment_ids, kv_positions, blocks[1], sizes[1])

    def pairs(compare, of_q, of_k):
        return compare(of_q[:, :, None], of_k[:, None, :])

    see = pairs(jnp.less_equal, q_low, k_high) & pairs(jnp.greater_equal, q_high, k_low)
    if q_positions is not None:
        # In the order (segment, position), the last query must not come before the first key.
        see &= pairs(jnp.greater, q_high, k_low) | pairs(jnp.greater_equal, q_last, k_first)
    # A key block of padding alone has k_low > k_high, which a query block could still straddle.
    return see & (k_high > 0)[:, None, :]
