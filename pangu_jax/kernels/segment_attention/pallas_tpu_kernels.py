"""Bodies of the TPU kernels of segment attention: forward, gradient of q, gradients of k and v.

A grid step works on one tile of the map, keys by queries: keys run along the sublanes and queries
along the lanes. So the running softmax, the log-sums and the backward pass's row sums are compact
[1, block_q] rows, their reductions add whole registers, and nothing is ever transposed but the
finished output block.

Letters: b batch row, n query head, k key-value head, i / j block of queries / keys, P and R their
sizes, H head width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# Logit of what is masked, and the first running maximum. The exponential of their difference is
# zero, so the weights of a query that has seen nothing yet are zero without a second mask.
_FLOOR = float(jnp.finfo(jnp.float32).min)
START = -1e30


class Static(NamedTuple):
    """What is fixed at trace time. blocks: (I, J); sizes: (P, R); groups: query heads per k."""

    scale: float
    window: int | None
    blocks: tuple[int, int]
    sizes: tuple[int, int]
    groups: int
    segments: bool
    positions: bool
    shared_lists: bool


def _dot(a, b, contract):
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _mask(s: Static, r: dict, i, j):
    """bool [R, P]: which keys (sublanes) each query (lanes) of the tile sees."""
    if s.positions:
        # Row 0 of the ids is the segment, row 1 the position.
        distance = r["q_ids"][0, 1:2, :] - r["k_ids"][0, :, 1:2]
    else:
        shape = (s.sizes[1], s.sizes[0])
        key = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        query = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        distance = (query - key) + (i * s.sizes[0] - j * s.sizes[1])
    mask = distance >= 0
    if s.window is not None:
        mask &= distance < s.window
    if s.segments:
        of_query = r["q_ids"][0, 0:1, :]
        mask &= (of_query == r["k_ids"][0, :, 0:1]) & (of_query > 0)
    return mask


def _logits(s: Static, r: dict, i, j, whole):
    """float32 [R, P], masked unless every query of the tile sees every key (`whole`)."""
    logits = _dot(r["k"][0, 0], r["q"][0, 0], (1, 1)) * s.scale
    return logits if whole else jnp.where(_mask(s, r, i, j), logits, _FLOOR)


def _visit(s: Static, r: dict, outer, step, counts, tile):
    """Calls `tile(inner, whole)` for the step-th block on the list of block `outer`.

    counts: (number of outer blocks, of inner blocks). `whole` is static: two versions of the tile.
    """
    row = 0 if s.shared_lists else pl.program_id(0)
    at = row * counts[0] + outer
    entry = r["list"][at * counts[1] + step]
    listed = step < r["count"][at]
    for whole in (False, True):

        @pl.when(listed & (entry % 2 == int(whole)))
        def _(whole=whole):
            tile(entry // 2, whole)


def forward_kernel(s: Static, names, *refs):
    """Grid (b, n, i, step): outputs out [1, 1, P, H] and log_sum [1, 1, 1, P]."""
    r = dict(zip(names, refs, strict=True))
    i, step = pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def _():
        r["top"][...] = jnp.full_like(r["top"], START)
        r["total"][...] = jnp.zeros_like(r["total"])
        r["sum"][...] = jnp.zeros_like(r["sum"])

    def tile(j, whole):
        v = r["v"][0, 0]
        logits = _logits(s, r, i, j, whole)
        top = r["top"][...]
        new_top = jnp.maximum(top, jnp.max(logits, axis=0, keepdims=True))
        p = jnp.exp(logits - new_top)
        shrink = jnp.exp(top - new_top)
        r["top"][...] = new_top
        r["total"][...] = r["total"][...] * shrink + jnp.sum(p, axis=0, keepdims=True)
        r["sum"][...] = r["sum"][...] * shrink + _dot(v, p.astype(v.dtype), (0, 0))  # [H, P]

    _visit(s, r, i, step, s.blocks, tile)

    @pl.when(step == s.blocks[1] - 1)
    def _():
        total = r["total"][...]
        seen = jnp.where(total > 0, total, 1.0)
        r["out"][0, 0] = (r["sum"][...] / seen).T.astype(r["out"].dtype)
        r["log_sum"][0, 0] = r["top"][...] + jnp.log(seen)


def _probabilities(s: Static, r: dict, i, j, whole):
    """The tile's weights [R, P], and the derivative of the loss by its logits less the scale."""
    p = jnp.exp(_logits(s, r, i, j, whole) - r["log_sum"][0, 0])
    dp = _dot(r["v"][0, 0], r["g"][0, 0], (1, 1))
    return p, p * (dp - r["delta"][0, 0])


def query_gradient_kernel(s: Static, names, *refs):
    """Grid (b, n, i, step): output dq [1, 1, P, H]."""
    r = dict(zip(names, refs, strict=True))
    i, step = pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def _():
        r["sum"][...] = jnp.zeros_like(r["sum"])

    def tile(j, whole):
        k = r["k"][0, 0]
        _, ds = _probabilities(s, r, i, j, whole)
        r["sum"][...] += _dot(ds.astype(k.dtype), k, (0, 0))

    _visit(s, r, i, step, s.blocks, tile)

    @pl.when(step == s.blocks[1] - 1)
    def _():
        r["dq"][0, 0] = (r["sum"][...] * s.scale).astype(r["dq"].dtype)


def key_gradient_kernel(s: Static, names, *refs):
    """Grid (b, k, j, group * I + step): outputs dk and dv [1, 1, R, H]."""
    r = dict(zip(names, refs, strict=True))
    j, visit = pl.program_id(2), pl.program_id(3)

    @pl.when(visit == 0)
    def _():
        r["sum_k"][...] = jnp.zeros_like(r["sum_k"])
        r["sum_v"][...] = jnp.zeros_like(r["sum_v"])

    def tile(i, whole):
        q, g = r["q"][0, 0], r["g"][0, 0]
        p, ds = _probabilities(s, r, i, j, whole)
        r["sum_v"][...] += _dot(p.astype(g.dtype), g, (1, 0))
        r["sum_k"][...] += _dot(ds.astype(q.dtype), q, (1, 0))

    _visit(s, r, j, visit % s.blocks[0], s.blocks[::-1], tile)

    @pl.when(visit == s.groups * s.blocks[0] - 1)
    def _():
        r["dk"][0, 0] = (r["sum_k"][...] * s.scale).astype(r["dk"].dtype)
        r["dv"][0, 0] = r["sum_v"][...].astype(r["dv"].dtype)
