"""Bodies of the TPU kernels: one forward, two backward (by rows and by columns of the map).

A grid step works on one tile of the map: `block` queries against `block` keys of one batch row,
all heads inside, so that the time and position tiles are built once for all of them. Sums stay
in VMEM while the inner grid axis runs.

Heads lie side by side in the lanes, in groups of 128 (see `pallas_tpu.lane_groups`); a head is
picked by zeroing the other lanes of its group. The matrix unit pads a narrow head to 128 lanes
anyway, so this costs nothing, needs no unaligned slice, and the maps shared by the heads meet all
of them in one product.

Letters: b batch row, i / j block of queries / keys.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from recsys_jax.kernels.silu_attention.buckets import bucket_guess

LANES = 128


class Lanes(NamedTuple):
    """How the heads of an array [B, N, H, W] lie in [B, N, groups * width]."""

    heads: int
    head_width: int
    per_group: int
    groups: int
    width: int

    def pick(self, x: jax.Array, head: int) -> tuple[jax.Array, jax.Array]:
        """The head's group [block, width] with all heads in it, and with the others zeroed."""
        group, slot = divmod(head, self.per_group)
        x = x[:, group * self.width : (group + 1) * self.width]
        if self.per_group == 1 or self.heads == 1:
            return x, x
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        mine = (lane >= slot * self.head_width) & (lane < (slot + 1) * self.head_width)
        return x, jnp.where(mine, x, jnp.zeros_like(x))

    def slice(self, head: int) -> slice:
        """Lanes of the head's group."""
        group = head // self.per_group
        return slice(group * self.width, (group + 1) * self.width)


class Static(NamedTuple):
    """What is fixed at trace time."""

    block: int
    blocks: int
    heads: int
    scale: float
    semantic: bool
    added: bool
    packed: bool
    time: bool
    position: bool
    top_bucket: int
    q_lanes: Lanes | None
    v_lanes: Lanes


def _dot(a, b, contract):
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


_nn = functools.partial(_dot, contract=(1, 0))
_nt = functools.partial(_dot, contract=(1, 1))
_tn = functools.partial(_dot, contract=(0, 0))


def _lookup(table, index):
    """table [1, 128], index int32 [r, c] in [0, 128), c a multiple of 128: table[0, index]."""
    table = jnp.broadcast_to(table, (index.shape[0], LANES))
    parts = [
        jnp.take_along_axis(table, index[:, c : c + LANES], axis=1, mode="promise_in_bounds")
        for c in range(0, index.shape[1], LANES)
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _skew(x, sign):
    """Rolls row r of x [r, c] by sign * r lanes, in log2(r) steps of plain rolls."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    step = 1
    while step < x.shape[0]:
        rolled = pltpu.roll(x, (sign * step) % x.shape[1], 1)
        x = jnp.where((row & step) != 0, rolled, x)
        step *= 2
    return x


def _tile(s: Static, r: dict, i, j):
    """Mask, time and position tiles [block, block], and the buckets; None where not needed."""
    shape = (s.block, s.block)
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    mask = (lane - row) <= (i - j) * s.block
    if s.packed:
        mask = mask & (r["of_query"][0, :, 1:2] == r["of_key"][0, 1:2, :])
    time = position = bucket = None
    if s.time:
        dt = jnp.abs(r["of_query"][0, :, 0:1] - r["of_key"][0, 0:1, :])
        guess = bucket_guess(dt, s.top_bucket)
        past = dt >= _lookup(r["thresholds"][...], guess)
        bucket = jnp.minimum(jnp.where(past, guess + 1, guess), s.top_bucket)
        time = _lookup(r["time_table"][...], bucket)
    if s.position:
        line = jnp.broadcast_to(r["position_lines"][0], (s.block, 2 * s.block))
        position = _skew(line, 1)[:, : s.block]
    return mask, time, position, bucket


def _logits(s: Static, q, k, head, time, position):
    """q k^T of one head, plus the biases where they are added."""
    _, q_head = s.q_lanes.pick(q, head)
    k_group, _ = s.q_lanes.pick(k, head)
    logits = _nt(q_head, k_group)
    if s.added:
        for bias in (time, position):
            logits = logits if bias is None else logits + bias
    return logits


def forward_kernel(s: Static, names, *refs):
    """Grid (b, i, j), j innermost. Outputs [1, block, lanes] per channel, sums in scratch."""
    r = dict(zip(names, refs, strict=True))
    b, i, j = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    channels = [c for c in ("semantic", "time", "position") if f"out_{c}" in r]

    @pl.when(j == 0)
    def _():
        for c in channels:
            r[f"sum_{c}"][...] = jnp.zeros_like(r[f"sum_{c}"])

    @pl.when((j >= r["first_key"][b, i]) & (j <= i))
    def _():
        v = r["v"][0]
        mask, time, position, _ = _tile(s, r, i, j)
        if s.semantic:
            q, k = r["q"][0], r["k"][0]
            for head in range(s.heads):
                x = _logits(s, q, k, head, time, position)
                a = jnp.where(mask, x * jax.nn.sigmoid(x) * s.scale, 0.0).astype(v.dtype)
                at = s.v_lanes.slice(head)
                r["sum_semantic"][:, at] += _nn(a, s.v_lanes.pick(v, head)[1])
        if not s.added:
            for c, tile in (("time", time), ("position", position)):
                if tile is not None:
                    r[f"sum_{c}"][...] += _nn(jnp.where(mask, tile, 0.0).astype(v.dtype), v)

    @pl.when(j == s.blocks - 1)
    def _():
        for c in channels:
            r[f"out_{c}"][0] = r[f"sum_{c}"][...].astype(r[f"out_{c}"].dtype)


def _d_logits(mask, x, da, scale):
    """Derivative of the loss by the logits, and the map itself."""
    sig = jax.nn.sigmoid(x)
    a = jnp.where(mask, x * sig * scale, 0.0)
    return jnp.where(mask, da * sig * (1.0 + x * (1.0 - sig)) * scale, 0.0), a


def rows_kernel(s: Static, names, *refs):
    """Grid (b, i, j), j innermost: dq, and per batch row the sums for both tables.

    d_time [1, 1, 128] by bucket; d_position [1, blocks, 2 * block]: row i - j holds the sums of
    the tiles' diagonals, lane (key - query) mod (2 * block).
    """
    r = dict(zip(names, refs, strict=True))
    b, i, j = pl.program_id(0), pl.program_id(1), pl.program_id(2)

    @pl.when((i == 0) & (j == 0))
    def _():
        for name in ("d_time", "d_position"):
            if name in r:
                r[name][...] = jnp.zeros_like(r[name])

    if s.semantic:

        @pl.when(j == 0)
        def _():
            r["sum_dq"][...] = jnp.zeros_like(r["sum_dq"])

    @pl.when((j >= r["first_key"][b, i]) & (j <= i))
    def _():
        v = r["v"][0]
        mask, time, position, bucket = _tile(s, r, i, j)
        d_shared = jnp.zeros((s.block, s.block), jnp.float32)
        if s.semantic:
            q, k, g = r["q"][0], r["k"][0], r["g_semantic"][0]
            for head in range(s.heads):
                x = _logits(s, q, k, head, time, position)
                da = _nt(s.v_lanes.pick(g, head)[1], s.v_lanes.pick(v, head)[0])
                ds, _ = _d_logits(mask, x, da, s.scale)
                at = s.q_lanes.slice(head)
                r["sum_dq"][:, at] += _nn(ds.astype(k.dtype), s.q_lanes.pick(k, head)[1])
                d_shared += ds
        if s.time:
            d_time = d_shared if s.added else jnp.where(mask, _nt(r["g_time"][0], v), 0.0)
            r["d_time"][0] += _histogram(bucket, d_time)
        if s.position:
            d_position = d_shared if s.added else jnp.where(mask, _nt(r["g_position"][0], v), 0.0)
            wide = jnp.concatenate([d_position, jnp.zeros_like(d_position)], axis=1)
            sums = jnp.sum(_skew(wide, -1), axis=0, keepdims=True)
            r["d_position"][0, pl.ds(i - j, 1), :] += sums

    if s.semantic:

        @pl.when(j == s.blocks - 1)
        def _():
            r["dq"][0] = r["sum_dq"][...].astype(r["dq"].dtype)


def _histogram(bucket, values):
    """[1, 128] sums of `values` by bucket; time order keeps a tile's range of buckets short."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)

    def add(c, sums):
        of_lane = jnp.sum(jnp.where(bucket == c, values, 0.0), axis=0, keepdims=True)
        return sums + jnp.where(lane == c, jnp.sum(of_lane), 0.0)

    start = jnp.zeros((1, LANES), jnp.float32)
    return jax.lax.fori_loop(jnp.min(bucket), jnp.max(bucket) + 1, add, start)


def columns_kernel(s: Static, names, *refs):
    """Grid (b, j, i), i innermost: dk and dv."""
    r = dict(zip(names, refs, strict=True))
    b, j, i = pl.program_id(0), pl.program_id(1), pl.program_id(2)

    @pl.when(i == 0)
    def _():
        for name in ("sum_dk", "sum_dv"):
            if name in r:
                r[name][...] = jnp.zeros_like(r[name])

    @pl.when((i >= j) & (i <= r["last_query"][b, j]))
    def _():
        v = r["v"][0]
        mask, time, position, _ = _tile(s, r, i, j)
        if s.semantic:
            q, k, g = r["q"][0], r["k"][0], r["g_semantic"][0]
            for head in range(s.heads):
                x = _logits(s, q, k, head, time, position)
                g_head = s.v_lanes.pick(g, head)[1]
                da = _nt(g_head, s.v_lanes.pick(v, head)[0])
                ds, a = _d_logits(mask, x, da, s.scale)
                r["sum_dk"][:, s.q_lanes.slice(head)] += _tn(
                    ds.astype(q.dtype), s.q_lanes.pick(q, head)[1]
                )
                r["sum_dv"][:, s.v_lanes.slice(head)] += _tn(a.astype(g.dtype), g_head)
        if not s.added:
            for tile, name in ((time, "g_time"), (position, "g_position")):
                if tile is not None:
                    g = r[name][0]
                    r["sum_dv"][...] += _tn(jnp.where(mask, tile, 0.0).astype(g.dtype), g)

    @pl.when(i == s.blocks - 1)
    def _():
        for name in ("dk", "dv"):
            if name in r:
                r[name][0] = r[f"sum_{name}"][...].astype(r[name].dtype)
