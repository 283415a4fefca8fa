"""Arrays that the Mosaic GPU kernels of SiLU attention are given beside q, k and v.

All of it is element-wise work and short reductions, which XLA fuses into a few small kernels: at
short lengths their launches take longer than the attention.

Letters: B batch, C tiles of 64 positions per sequence.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from pangu_jax.kernels.mosaic_gpu import TILE, pad_axis
from recsys_jax.kernels.silu_attention.buckets import INCREMENT, bucket_thresholds
from recsys_jax.kernels.silu_attention.pallas_gpu_common import TABLE


class Prepared:
    """Arrays on the host side of the kernels: padded operands and per-tile tables.

    Attributes (all padded to whole tiles):
      meta: int32 [B, C, 3, 64]: segment id, timestamp, query time.
      span: int32 [B, C, 4]: first and past-the-last key tile of a query tile, and first and
        past-the-last query tile of a key tile.
      buckets: int32 [2, B, C, C]: lowest and highest visible bucket of (query, key) tile.
      theta: int32 [128]: smallest time difference of bucket c (entry 0 is 0).
    """

    def __init__(self, spec, segment_ids, timestamps, query_times):
        rows = spec.batch
        shape = (rows, spec.tiles, TILE)
        segments = pad_axis(segment_ids, 1, spec.tiles * TILE).reshape(shape)
        if spec.time:
            keys, queries = (
                pad_axis(t, 1, spec.tiles * TILE).reshape(shape) for t in (timestamps, query_times)
            )
        else:
            keys = queries = jnp.zeros_like(segments)
        self.meta = jnp.stack([segments, keys, queries], axis=2)
        big = np.int32(2**31 - 1)
        valid = segments > 0
        seg_low = jnp.where(valid, segments, big).min(-1)
        seg_high = jnp.where(valid, segments, 0).max(-1)
        tile = np.arange(spec.tiles)
        active = (
            (seg_low[:, :, None] <= seg_high[:, None, :])
            & (seg_low[:, None, :] <= seg_high[:, :, None])
            & (tile[:, None] >= tile[None, :])
        )
        self.span = jnp.stack([*_extent(active, 2), *_extent(active, 1)], axis=-1)
        theta = np.full(TABLE, big, np.int32)
        reachable = bucket_thresholds(spec.num_buckets)
        theta[0] = 0
        theta[1 : 1 + len(reachable)] = reachable
        self.theta = jnp.asarray(theta)
        if spec.time:
            q_low, q_high = _bounds(queries, valid)
            k_low, k_high = _bounds(keys, valid)
            # Bounds of query time - key time; slack of one part in 10^6 covers the rounding.
            below = _difference(q_low[:, :, None], k_high[:, None, :])
            above = _difference(q_high[:, :, None], k_low[:, None, :])
            least = jnp.where((below <= 0) & (above >= 0), 0, jnp.minimum(abs(below), abs(above)))
            most = jnp.maximum(abs(below), abs(above))
            slack = 1e-6
            low = _bucket_bound(least * (1 - slack) - 1, -1e-3, len(reachable))
            high = _bucket_bound(most * (1 + slack) + 1, 1e-3, len(reachable))
            self.buckets = jnp.stack([low, high])
        else:
            self.buckets = jnp.zeros((2, rows, spec.tiles, spec.tiles), jnp.int32)


def _bucket_bound(dt, shift, top):
    """Bucket of float32 time differences, moved by `shift`, far more than the logarithm errs."""
    bucket = jnp.log(jnp.maximum(dt, 1.0)) * np.float32(1 / INCREMENT) + shift
    return jnp.clip(bucket, 0, top).astype(jnp.int32)


def _extent(active, axis):
    """First and past-the-last true place along an axis, int32 each; 0 and 0 if there is none."""
    count = active.shape[axis]
    place = lax.broadcasted_iota(jnp.int32, active.shape, axis)
    last = jnp.where(active, place + 1, 0).max(axis)
    first = jnp.where(active, place, count).min(axis)
    return jnp.minimum(first, last), last


def _bounds(times, valid):
    """Earliest and latest valid time along the last axis: int32, 0 where none is valid."""
    limits = jnp.iinfo(jnp.int32)
    low = jnp.where(valid, times, limits.max).min(-1)
    high = jnp.where(valid, times, limits.min).max(-1)
    some = valid.any(-1)
    return jnp.where(some, low, 0), jnp.where(some, high, 0)


def _difference(a, b):
    """a - b of int32 times as float32, subtracted first: a float32 cannot hold a raw timestamp.

    Where int32 would overflow (negative against positive times) the difference is so large that
    the rounding of the operands does not matter.
    """
    coarse = a.astype(jnp.float32) - b.astype(jnp.float32)
    return jnp.where(jnp.abs(coarse) < 2**30, (a - b).astype(jnp.float32), coarse)


def position_tiles(position_weights, tiles):
    """Toeplitz tiles of the position bias: float32 [C, 64, 64], tile d for queries d tiles later.

    Entry [d, r, c] is the weight of distance d * 64 + r - c; distances past the table's end use
    its last entry, negative ones (never visible) its first.
    """
    r = np.arange(TILE)
    distance = np.arange(tiles)[:, None, None] * TILE + r[None, :, None] - r[None, None, :]
    distance = np.clip(distance, 0, position_weights.shape[0] - 1)
    return position_weights.astype(jnp.float32)[distance]


def table_weights(time_weights):
    """float32 [128]: the reachable part of the time table, zero padded."""
    return pad_axis(time_weights.astype(jnp.float32)[:TABLE], 0, TABLE)
