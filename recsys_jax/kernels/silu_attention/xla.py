"""SiLU attention in plain XLA operations, tuned for CPU; the fallback everywhere.

Forward and backward are written by hand: residuals are the inputs alone, the maps are recomputed.
Rows go in unrolled blocks with static, causal column ranges, so memory is O(B H N block) and
nothing above the diagonal block is touched. Two things matter on a CPU and explain the layout:

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

from recsys_jax.kernels.silu_attention.buckets import time_bucket
from recsys_jax.kernels.silu_attention.output import SiluAttentionOutput
from recsys_jax.kernels.silu_attention.position import diagonal_sums, extend, toeplitz_rows


class _Static(NamedTuple):
    scale: float
    added: bool
    packed: bool
    block: int


def default_block(n: int) -> int:
    """Rows per block: 64 up to 1,024 positions, then a sixteenth, at most 256."""
    return min(256, max(64, -(-n // 16 // 64) * 64))


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
    bias: str = 'separate',
    packed: bool = False,
    block: int | None = None,
) -> SiluAttentionOutput:
    """Arguments and value as in `api.silu_attention`; see the contract there."""
    static = _Static(scale, bias == 'added', packed, block or default_block(v.shape[1]))
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


def _blocks(n, block):
    return [(start, min(start + block, n)) for start in range(0, n, block)]


def _mask(static, segments, start, stop, keys_first):
    """0/1 map of a row block: [1, ...] if causality is all, [B, ...] if packed."""
    i, j = jnp.arange(start, stop), jnp.arange(stop)
    if keys_first:
        mask = (j[:, None] <= i[None, :])[None]
        if static.packed:
            mask = mask & (segments[:, :stop, None] == segments[:, None, start:stop])
    else:
        mask = (j[None, :] <= i[:, None])[None]
        if static.packed:
            mask = mask & (segments[:, start:stop, None] == segments[:, None, :stop])
    return mask


def _time_tile(tw, ts, qt, start, stop, keys_first, acc):
    """Buckets and weights of a row block, [B, j, i] or [B, i, j]."""
    if keys_first:
        dt = qt[:, None, start:stop] - ts[:, :stop, None]
    else:
        dt = qt[:, start:stop, None] - ts[:, None, :stop]
    bucket = time_bucket(dt, tw.shape[0] - 1)
    return bucket, tw.astype(acc).at[bucket].get(mode='promise_in_bounds')


def _forward(static, q, k, v, pw, tw, segments, ts, qt):
    residuals = (q, k, v, pw, tw, segments, ts, qt)
    dtype, acc = v.dtype, jnp.promote_types(v.dtype, jnp.float32)
    dot = functools.partial(jnp.einsum, preferred_element_type=acc)
    batch, n, heads, width = v.shape
    q, k, v = _to_lanes(q), _to_lanes(k), _to_lanes(v)
    joined = _heads_joined(v)
    semantic, time, position = [], [], []
    for start, stop in _blocks(n, static.block):
        mask = _mask(static, segments, start, stop, keys_first=True)
        weights_p = weights_t = None
        if pw is not None:
            weights_p = toeplitz_rows(pw, start, stop).T.astype(acc)[None]
        if tw is not None:
            _, weights_t = _time_tile(tw, ts, qt, start, stop, True, acc)
        if q is not None:
            s = dot('bhcj,bhci->bhji', k[..., :stop], q[..., start:stop])
            if static.added:
                for weights in (weights_p, weights_t):
                    s = s if weights is None else s + weights[:, None]
            a = jnp.where(mask[:, None], s * jax.nn.sigmoid(s) * static.scale, 0)
            out = dot('bhdj,bhji->bhdi', v[..., :stop], a.astype(dtype))
            semantic.append(out.astype(dtype))
        if static.added:
            continue
        for weights, channel in ((weights_t, time), (weights_p, position)):
            if weights is not None:
                tile = jnp.broadcast_to(jnp.where(mask, weights, 0), (batch, stop, stop - start))
                out = dot('bdj,bji->bdi', joined[..., :stop], tile.astype(dtype))
                channel.append(out.astype(dtype))

    def join(parts):
        if not parts:
            return None
        return _from_lanes(jnp.concatenate(parts, axis=-1).reshape(batch, heads, width, n))

    return SiluAttentionOutput(join(semantic), join(time), join(position)), residuals


def _backward(static, residuals, cotangents):
    q0, k0, v0, pw, tw, segments, ts, qt = residuals
    dtype, acc = v0.dtype, jnp.promote_types(v0.dtype, jnp.float32)
    dot = functools.partial(jnp.einsum, preferred_element_type=acc)
    batch, n, heads, width = v0.shape
    q, k, v = _to_lanes(q0), _to_lanes(k0), _to_lanes(v0)
    g_sem, g_time, g_pos = (_to_lanes(g) for g in cotangents)
    joined = _heads_joined(v)
    g_time, g_pos = (None if g is None else _heads_joined(g) for g in (g_time, g_pos))
    dq, dk = [], None if q is None else jnp.zeros(k.shape, acc)
    dv, dv_joined = jnp.zeros(v.shape, acc), jnp.zeros(joined.shape, acc)
    dpw = None if pw is None else jnp.zeros(n, acc)
    # One histogram per row: the scatter stays within a shard of the batch, and float32 sums
    # stay short.
    dtw = None if tw is None else jnp.zeros((batch, tw.shape[0]), acc)
    row = jnp.arange(batch)[:, None, None]

    for start, stop in _blocks(n, static.block):
        mask = _mask(static, segments, start, stop, keys_first=False)
        weights_p = weights_t = bucket = None
        if pw is not None:
            weights_p = toeplitz_rows(pw, start, stop).astype(acc)[None]
        if tw is not None:
            bucket, weights_t = _time_tile(tw, ts, qt, start, stop, False, acc)
        d_position = d_time = None
        if q is not None:
            qi, kj, gi = q[..., start:stop], k[..., :stop], g_sem[..., start:stop]
            s = dot('bhci,bhcj->bhij', qi, kj)
            if static.added:
                for weights in (weights_p, weights_t):
                    s = s if weights is None else s + weights[:, None]
            sig = jax.nn.sigmoid(s)
            da = dot('bhdi,bhdj->bhij', gi, v[..., :stop])
            a = jnp.where(mask[:, None], s * sig * static.scale, 0).astype(dtype)
            ds = jnp.where(mask[:, None], da * sig * (1 + s * (1 - sig)) * static.scale, 0)
            if static.added and (pw is not None or tw is not None):
                total = ds.sum(1)  # [B, i, j]
                d_position = None if pw is None else total.sum(0)
                d_time = None if tw is None else total
            ds = ds.astype(dtype)
            dq.append(dot('bhcj,bhij->bhci', kj, ds).astype(dtype))
            dk = dk.at[..., :stop].add(dot('bhci,bhij->bhcj', qi, ds))
            dv = dv.at[..., :stop].add(dot('bhdi,bhij->bhdj', gi, a))
        if not static.added:
            shape = (batch, stop - start, stop)
            if tw is not None:
                gi = g_time[..., start:stop]
                tile = jnp.where(mask, weights_t, 0).astype(dtype)
                dv_joined = dv_joined.at[..., :stop].add(dot('bdi,bij->bdj', gi, tile))
                d_time = jnp.where(mask, dot('bdi,bdj->bij', gi, joined[..., :stop]), 0)
            if pw is not None:
                gi = g_pos[..., start:stop]
                tile = jnp.broadcast_to(jnp.where(mask, weights_p, 0), shape).astype(dtype)
                dv_joined = dv_joined.at[..., :stop].add(dot('bdi,bij->bdj', gi, tile))
                d_position = jnp.where(mask, dot('bdi,bdj->bij', gi, joined[..., :stop]), 0).sum(0)
        if d_time is not None:
            dtw = dtw.at[row, bucket].add(d_time, mode='promise_in_bounds')
        if d_position is not None:
            dpw = dpw.at[:stop].add(diagonal_sums(d_position))

    dv = (dv + dv_joined.reshape(v.shape)).astype(dtype)
    if dpw is not None:
        dpw = jnp.pad(dpw, (0, pw.shape[0] - n)).astype(pw.dtype)
    return (
        None if q is None else _from_lanes(jnp.concatenate(dq, axis=-1)),
        None if q is None else _from_lanes(dk.astype(dtype)),
        _from_lanes(dv),
        dpw,
        None if dtw is None else dtw.sum(0).astype(tw.dtype),
        None,
        None,
        None,
    )


_attention.defvjp(_forward, _backward)
