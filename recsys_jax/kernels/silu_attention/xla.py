"""SiLU attention in plain XLA operations, tuned for CPU; the fallback everywhere.

Forward and backward are written by hand: residuals are the inputs alone, the maps are recomputed.
Rows go in blocks with static, causal column ranges. Up to 512 positions the blocks are unrolled:
they are independent, and XLA runs them on several cores at once. Beyond, up to eight unrolled
groups of rows each loop over their blocks, which keeps memory at O(B H N block): unrolled blocks
would all be live together. Two more things matter on a CPU and explain the layout:

* [B, H, width, N] with N last: XLA's batched products run up to twice as fast with both operands
  transposed this way than with a narrow last dimension (width 25 or 50 against vector lanes of 16).
* the orientation of the map: [j, i] in forward and [i, j] in backward make every product but one
  (dq) a plain row-major one.

The batch is never split or scanned over, so data parallelism by sharding passes through.

Letters: B batch, N positions, H heads, K width of q and k, D width of v; i query, j key.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pangu_jax.kernels.implementation import current_platform
from recsys_jax.kernels.silu_attention.buckets import time_bucket
from recsys_jax.kernels.silu_attention.output import SiluAttentionOutput
from recsys_jax.kernels.silu_attention.position import diagonal_sums, extend, toeplitz_rows

_UNROLLED = 512
_MAX_GROUPS = 8


class _Static(NamedTuple):
    scale: float
    added: bool
    packed: bool
    block: int


def default_block(n: int) -> int:
    """Rows per block."""
    return 64 if n <= _UNROLLED else 128


def silu_attention_xla(
    q: jax.Array | None,
    k: jax.Array | None,
    v: jax.Array,
    *,
    segment_ids: jax.Array,
    position_weights: jax.Array | None = None,
    time_weights: jax.Array | None = None,
    timestamps: jax.Array | None = None,
    query_times: jax.Array | None = None,
    scale: float,
    bias: str = "separate",
    packed: bool = False,
    block: int | None = None,
) -> SiluAttentionOutput:
    """Arguments and value as in `api.silu_attention`; see the contract there."""
    static = _Static(scale, bias == "added", packed, block or default_block(v.shape[1]))
    if position_weights is not None:
        position_weights = extend(position_weights, v.shape[1])
    return _attention(
        static, q, k, v, position_weights, time_weights, segment_ids, timestamps, query_times
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, pw, tw, segments, ts, qt):
    return _forward(static, q, k, v, pw, tw, segments, ts, qt)[0]


def _to_lanes(x):
    """[B, N, H, W] -> [B, H, W, N]."""
    return None if x is None else x.transpose(0, 2, 3, 1)


def _from_lanes(x):
    return x.transpose(0, 3, 1, 2)


def _heads_joined(x):
    """[B, H, W, N] -> [B, H * W, N]: one product for all heads where they share a map."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _plan(n, block):
    """[(first row, number of blocks, rows of a block, columns)]: loops where blocks > 1."""
    if n <= _UNROLLED:
        return [(i, 1, min(block, n - i), min(i + block, n)) for i in range(0, n, block)]
    plan = []
    rows = max(2, -(-n // _MAX_GROUPS // block)) * block
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        count, rest = divmod(stop - start, block)
        if count:
            plan.append((start, count, block, start + count * block))
        if rest:
            plan.append((stop - rest, 1, rest, stop))
    return plan


class _Context(NamedTuple):
    """What every block of a group sees: columns 0.. of the keys, all tables."""

    static: _Static
    k: jax.Array | None
    v: jax.Array
    pw: jax.Array | None
    tw: jax.Array | None
    segments: jax.Array
    ts: jax.Array | None
    acc: jnp.dtype

    def dot(self, equation, *operands):
        return jnp.einsum(equation, *operands, preferred_element_type=self.acc)

    def tiles(self, start, block, keys_first):
        """Mask, position and time weights [1 or B, i, j] and time buckets of a block of rows."""
        columns, rows = self.v.shape[-1], block["segments"].shape[-1]

        def pairs(of_query, of_key, combine):
            if keys_first:
                return combine(of_query[:, None, :], of_key[:, :, None])
            return combine(of_query[:, :, None], of_key[:, None, :])

        i, j = start + jnp.arange(rows)[None], jnp.arange(columns)[None]
        mask = pairs(i, j, jnp.greater_equal)
        if self.static.packed:
            mask = mask & pairs(block["segments"], self.segments, jnp.equal)
        position = time = bucket = None
        if self.pw is not None:

            def position_tile():
                tile = toeplitz_rows(self.pw, start, rows, columns).astype(self.acc)
                return (tile.T if keys_first else tile)[None]

            position = self.made_once(position_tile) if self.static.added else position_tile()
        if self.tw is not None:

            def time_tile():
                dt = pairs(block["qt"], self.ts, jnp.subtract)
                bucket = time_bucket(dt, self.tw.shape[0] - 1)
                return bucket, self.tw.astype(self.acc).at[bucket].get(mode="promise_in_bounds")

            bucket, time = self.made_once(time_tile) if self.static.added else time_tile()
        return mask, position, time, bucket

    def made_once(self, make):
        """The arrays make() returns, kept from being fused into what reads them.

        XLA on CPU would repeat the logarithm and the look-up for every head and every use; an
        optimization barrier does not survive to its fusion pass, a conditional that it cannot
        decide (no segment id is negative) does.
        """
        if current_platform() != "cpu":
            return make()
        zeros = functools.partial(
            jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(make)
        )
        return jax.lax.cond(self.segments[0, 0] >= 0, make, zeros)

    def logits(self, equation, first, second, position, time):
        s = self.dot(equation, first, second)
        if self.static.added:
            for weights in (position, time):
                s = s if weights is None else s + weights[:, None]
        return s


def _context(static, k, v, pw, tw, segments, ts, columns):
    def cut(x):
        return None if x is None else x[..., :columns]

    acc = jnp.promote_types(v.dtype, jnp.float32)
    return _Context(static, cut(k), cut(v), pw, tw, segments[:, :columns], cut(ts), acc)


def _loop(body, carry, by_rows, start, count, rows):
    """body(carry, first row, the block's rows) over `count` blocks; outputs joined along rows.

    by_rows: name -> [..., N], or None.
    """
    by_rows = {name: x for name, x in by_rows.items() if x is not None}
    if count == 1:
        return body(carry, start, {k: x[..., start : start + rows] for k, x in by_rows.items()})

    def split(x):
        x = x[..., start : start + count * rows].reshape(*x.shape[:-1], count, rows)
        return jnp.moveaxis(x, -2, 0)

    def step(carry, x):
        at, block = x
        return body(carry, start + at * rows, block)

    xs = (jnp.arange(count), {name: split(x) for name, x in by_rows.items()})
    carry, out = jax.lax.scan(step, carry, xs)
    out = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], count * rows), out)
    return carry, out


def _forward(static, q, k, v, pw, tw, segments, ts, qt):
    residuals = (q, k, v, pw, tw, segments, ts, qt)
    dtype = v.dtype
    batch, n, heads, width = v.shape
    q, k, v = _to_lanes(q), _to_lanes(k), _to_lanes(v)
    rows_of = {"q": q, "segments": segments, "qt": qt}
    parts = []
    for start, count, rows, columns in _plan(n, static.block):
        c = _context(static, k, v, pw, tw, segments, ts, columns)
        joined = _heads_joined(c.v)

        def body(carry, start, block, c=c, joined=joined):
            mask, position, time, _ = c.tiles(start, block, keys_first=True)
            out = {}
            if "q" in block:
                s = c.logits("bhcj,bhci->bhji", c.k, block["q"], position, time)
                a = jnp.where(mask[:, None], s * jax.nn.sigmoid(s) * static.scale, 0)
                out["semantic"] = c.dot("bhdj,bhji->bhdi", c.v, a.astype(dtype)).astype(dtype)
            if not static.added:
                for name, weights in (("time", time), ("position", position)):
                    if weights is not None:
                        tile = jnp.where(mask, weights, 0)
                        tile = jnp.broadcast_to(tile, (batch, *tile.shape[1:])).astype(dtype)
                        product = c.dot("bdj,bji->bdi", joined, tile).astype(dtype)
                        out[name] = product.reshape(batch, heads, width, -1)
            return carry, out

        parts.append(_loop(body, None, rows_of, start, count, rows)[1])
    out = {
        name: _from_lanes(jnp.concatenate([part[name] for part in parts], axis=-1))
        for name in parts[0]
    }
    return SiluAttentionOutput(*(out.get(x) for x in SiluAttentionOutput._fields)), residuals


def _backward(static, residuals, cotangents):
    q, k, v, pw, tw, segments, ts, qt = residuals
    dtype, acc = v.dtype, jnp.promote_types(v.dtype, jnp.float32)
    batch, n, heads, width = v.shape
    q, k, v = _to_lanes(q), _to_lanes(k), _to_lanes(v)
    g_sem, g_time, g_pos = (_to_lanes(g) for g in cotangents)
    g_time, g_pos = (None if g is None else _heads_joined(g) for g in (g_time, g_pos))
    rows_of = {
        'q': q, 'segments': segments, 'qt': qt, 'g_sem': g_sem, 'g_time': g_time, 'g_pos': g_pos,
    }  # fmt: skip
    # One histogram per row of the batch: the scatter stays within a shard of the batch, and the
    # float32 sums stay short.
    row = jnp.arange(batch)[:, None, None]
    total = {"dv": jnp.zeros(v.shape, acc), "dv_joined": jnp.zeros((batch, heads * width, n), acc)}
    if q is not None:
        total["dk"] = jnp.zeros(k.shape, acc)
    if pw is not None:
        total["dpw"] = jnp.zeros(n, acc)
    if tw is not None:
        total["dtw"] = jnp.zeros((batch, tw.shape[0]), acc)
    dq = []
    for start, count, rows, columns in _plan(n, static.block):
        c = _context(static, k, v, pw, tw, segments, ts, columns)
        joined = _heads_joined(c.v)

        def body(carry, start, block, c=c, joined=joined):
            mask, position, time, bucket = c.tiles(start, block, keys_first=False)
            carry, out = dict(carry), {}
            d_position = d_time = None
            if "q" in block:
                qi, gi = block["q"], block["g_sem"]
                s = c.logits("bhci,bhcj->bhij", qi, c.k, position, time)
                sig = jax.nn.sigmoid(s)
                da = c.dot("bhdi,bhdj->bhij", gi, c.v)
                a = jnp.where(mask[:, None], s * sig * static.scale, 0).astype(dtype)
                ds = jnp.where(mask[:, None], da * sig * (1 + s * (1 - sig)) * static.scale, 0)
                if static.added and (pw is not None or tw is not None):
                    d_time = d_position = ds.sum(1)  # [B, i, j]
                ds = ds.astype(dtype)
                out["dq"] = c.dot("bhcj,bhij->bhci", c.k, ds).astype(dtype)
                carry["dk"] += c.dot("bhci,bhij->bhcj", qi, ds)
                carry["dv"] += c.dot("bhdi,bhij->bhdj", gi, a)
            if not static.added:
                for name, weights in (("g_time", time), ("g_pos", position)):
                    if weights is None:
                        continue
                    gi = block[name]
                    tile = jnp.where(mask, weights, 0)
                    tile = jnp.broadcast_to(tile, (batch, *tile.shape[1:])).astype(dtype)
                    carry["dv_joined"] += c.dot("bdi,bij->bdj", gi, tile)
                    d = jnp.where(mask, c.dot("bdi,bdj->bij", gi, joined), 0)
                    d_time, d_position = (d, d_position) if name == "g_time" else (d_time, d)
            if time is not None:
                carry["dtw"] = carry["dtw"].at[row, bucket].add(d_time, mode="promise_in_bounds")
            if pw is not None:
                sums = diagonal_sums(d_position.sum(0))
                old = jax.lax.dynamic_slice_in_dim(carry["dpw"], start, sums.size)
                carry["dpw"] = jax.lax.dynamic_update_slice_in_dim(
                    carry["dpw"], old + sums, start, 0
                )
            return carry, out

        # Entry z of the group's position sums is distance z - (columns - 1).
        sizes = {name: (*x.shape[:-1], columns) for name, x in total.items()}
        if tw is not None:
            sizes["dtw"] = total["dtw"].shape
        if pw is not None:
            sizes["dpw"] = (2 * columns,)
        carry = {name: jnp.zeros(size, acc) for name, size in sizes.items()}
        carry, out = _loop(body, carry, rows_of, start, count, rows)
        if q is not None:
            dq.append(out["dq"])
        if pw is not None:
            carry["dpw"] = carry["dpw"][columns - 1 : 2 * columns - 1]
        for name, x in carry.items():
            # Not `.at[...].add`: that is a scatter, slow to run and slower to constant-fold.
            missing = total[name].shape[-1] - x.shape[-1]
            total[name] += jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])

    dv = (total["dv"] + total["dv_joined"].reshape(v.shape)).astype(dtype)
    dpw = None
    if pw is not None:
        dpw = jnp.pad(total["dpw"], (0, pw.shape[0] - n)).astype(pw.dtype)
    return (
        None if q is None else _from_lanes(jnp.concatenate(dq, axis=-1)),
        None if q is None else _from_lanes(total["dk"].astype(dtype)),
        _from_lanes(dv),
        dpw,
        None if tw is None else total["dtw"].sum(0).astype(tw.dtype),
        None,
        None,
        None,
    )


_attention.defvjp(_forward, _backward)
