"""What the Mosaic GPU kernels of segment attention share: static facts, ids, mask, staging.

Tiles, ring and interpret mode are those of `pangu_jax.kernels.mosaic_gpu`. Logits are kept in base
2 (times log2 e), which the exponential of the device works in.

Letters: B rows, N query heads, K key-value heads, H head width (padded), I / J tiles of 64 queries
/ keys, A rows of the ids: B, or 1 where all rows are alike.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels.mosaic_gpu import TILE, extent, launch, pad_axis, swizzled
from pangu_jax.kernels.segment_attention.blocks import visible_blocks, whole_blocks
from pangu_jax.kernels.segment_attention.reference import row_order

# Logit of what is masked, and the first running maximum. The exponential of their difference is
# zero, so the weights of a query that has seen nothing yet are zero without a second mask.
FLOOR = float(np.finfo(np.float32).min)
START = -1e30
STAGES = 2


@dataclasses.dataclass(frozen=True)
class Spec:
    """Static facts of one call. tiles: (I, J); groups: query heads per key-value head."""

    scale: float
    window: int | None
    dtype: np.dtype
    tiles: tuple[int, int]
    groups: int
    width: int
    shared_ids: bool
    interpret: bool

    @property
    def scale_base2(self) -> float:
        return self.scale * math.log2(math.e)


def prepare(tiles, lengths, q_segment_ids, kv_segment_ids, q_positions, kv_positions, window):
    """Ids by tile, and the range of tiles that each tile must visit.

    Args:
      tiles: (I, J). lengths: (T, S) before padding.
      others: as in `api.segment_attention`.

    Returns:
      q_ids [A, I, 2, 64] and k_ids [A, J, 2, 64]: segment (0: padding) and position; q_span
      [A, I, 2] and k_span [A, J, 2]: first and past-the-last tile of the other side; whole
      [A, I, J]: 1 for pairs that need no mask. All int32.
    """
    full = tiles[0] * TILE, tiles[1] * TILE
    # A table of what row order and the given ids rule out; what is None stays None for it.
    given = (q_segment_ids, kv_segment_ids, q_positions, kv_positions)
    padded = [None if x is None else pad_axis(x, 1, full[n % 2]) for n, x in enumerate(given)]
    shape = {"blocks": tiles, "sizes": (TILE, TILE), "window": window}
    rows = max((x.shape[0] for x in padded if x is not None), default=1)
    active, whole = (
        jnp.broadcast_to(table(*padded, **shape), (rows, *tiles))
        for table in (visible_blocks, whole_blocks)
    )

    def ids(segments, positions, side):
        if segments is None:
            segments = pad_axis(jnp.ones((rows, lengths[side]), jnp.int32), 1, full[side])
        if positions is None:
            positions = jnp.broadcast_to(row_order(full[side]), (rows, full[side]))
        return jnp.stack([x.reshape(rows, -1, TILE) for x in (segments, positions)], axis=2)

    q_ids, k_ids = ids(padded[0], padded[2], 0), ids(padded[1], padded[3], 1)
    q_span, k_span = (jnp.stack(extent(active, axis), axis=-1) for axis in (2, 1))
    return q_ids, k_ids, q_span, k_span, whole.astype(jnp.int32)


def masked(spec, ops, logits, whole, q_ids, k_ids, query_axis):
    """Logits [64, 64] with FLOOR where a query does not see a key, unless `whole`.

    Queries run along `query_axis` of the tile.
    """

    def mask():
        return jnp.where(_visible(spec, ops, q_ids, k_ids, query_axis), logits, FLOOR)

    return lax.cond(whole > 0, lambda: logits, mask)


def _visible(spec, ops, q_ids, k_ids, query_axis):
    of_query, of_key = (
        [ops.vector(ids.at[n], axis) for n in (0, 1)]
        for ids, axis in ((q_ids, query_axis), (k_ids, 1 - query_axis))
    )
    see = (of_query[0] == of_key[0]) & (of_query[0] > 0) & (of_query[1] >= of_key[1])
    if spec.window is not None:
        see = see & (of_query[1] - of_key[1] < spec.window)
    return see


def tile_buffer(spec, *lead):
    """Shared memory for tiles [..., 64, H]."""
    return swizzled((*lead, TILE, spec.width), spec.dtype)


def ids_buffer(*lead):
    return plgpu.SMEM((*lead, 2, TILE), jnp.int32)


def call(spec, body, grid, names, operands, out_type, scratch):
    """Launch `body(refs, outputs, scratch)` with dictionaries by name instead of positions."""

    def flat(*refs):
        parts, at = [], 0
        for group in (operands, out_type, scratch):
            parts.append(dict(zip(group, refs[at : at + len(group)], strict=True)))
            at += len(group)
        body(*parts)

    outs = launch(
        spec.interpret, flat, grid, names, list(out_type.values()), list(scratch.values()),
        *operands.values(),
    )  # fmt: skip
    return dict(zip(out_type, outs, strict=True))
