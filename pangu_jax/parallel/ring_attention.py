"""Segment attention over a sequence that is divided over a mesh axis.

Every rank holds queries, keys and values of the same positions, in any order: segment ids and
original positions travel along with the keys and say who sees whom, so a zigzag order needs nothing
further. Two strategies with one signature: `ring_segment_attention` passes keys and values from
rank to rank and holds one foreign shard at a time; `gathered_segment_attention` gathers them.

Both run inside `jax.shard_map(..., check_vma=False)` and write out what the backward pass
exchanges: JAX transposes no communication here. What is kept for it are the local shards, the
result and its log-sums: foreign keys are fetched again. Parts are joined, and gradients summed
between ranks, in float32 (float64 for float64).

Letters: B rows, T queries and S = T keys of a rank, N query heads, K key-value heads, H head width,
C ranks of the axis.

Source: Ring Attention (arXiv 2310.01889); documents divided over ranks as in Pangu Ultra (arXiv
2504.07866) section 4.3.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pangu_jax.kernels.segment_attention.api import check_arguments
from pangu_jax.kernels.segment_attention.parts import attend_backward, attend_forward
from pangu_jax.kernels.segment_attention.reference import ATTENTION_RESIDUALS


class _Static(NamedTuple):
    axis_name: str
    scale: float
    window: int | None
    implementation: str


class _Shard(NamedTuple):
    """Keys of one rank: kv (2, B, S, K, H); ids (2, B, S) int32, segments and positions."""

    kv: jax.Array
    ids: jax.Array


def ring_segment_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    scale: float,
    axis_name: str,
    window: int | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attention of the local queries to the keys of all ranks; keys and values go round a ring.

    Forward, (k, v) and ids take C - 1 hops. Backward they do so again, and (dk, dv), in float32,
    take C - 1 hops of their own. Every hop of keys is issued before the work on the shard at hand,
    and no hop of gradients waits for the work it travels beside.

    Args:
      q: [B, T, N, H], the local shard.
      k, v: [B, T, K, H], local shards.
      q_segment_ids, kv_segment_ids: int32 [B, T], 0 = padding; or both None: one document per row.
      q_positions, kv_positions: int32 [B, T], original positions of the local shard.
      scale, window: as in `segment_attention`.
      axis_name: the mesh axis over which the sequence is divided.
      implementation: as in `attend_forward`.

    Returns:
      [B, T, N, H] in the type of v, the local shard; zero for queries that see nothing.

    Raises:
      ValueError: for arguments that do not fit together.
      ImplementationUnavailableError: if a demanded implementation cannot serve the call.
    """
    ids = (q_segment_ids, kv_segment_ids, q_positions, kv_positions)
    shard = _checked(q, k, v, *ids, window)
    static = _Static(axis_name, float(scale), window, implementation)
    with jax.named_scope("ring_attention"):
        return _ring(static, q, k, v, *shard)


def gathered_segment_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array,
    kv_positions: jax.Array,
    scale: float,
    axis_name: str,
    window: int | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attention of the local queries to the keys of all ranks, which are gathered first.

    Forward, one all-gather of (k, v) and one of ids; backward the same again and one reduce-scatter
    of (dk, dv) in float32. Holds C times the memory of the ring for keys and values while it runs.
    Arguments, value and errors as in `ring_segment_attention`.
    """
    ids = (q_segment_ids, kv_segment_ids, q_positions, kv_positions)
    shard = _checked(q, k, v, *ids, window)
    static = _Static(axis_name, float(scale), window, implementation)
    with jax.named_scope("gathered_attention"):
        return _gathered(static, q, k, v, *shard)


def _checked(q, k, v, q_segment_ids, kv_segment_ids, q_positions, kv_positions, window):
    """(ids of the queries, ids of the keys), each (2, B, T): segments and positions."""
    check_arguments(q, k, v, q_segment_ids, kv_segment_ids, q_positions, kv_positions, window)
    if q_positions is None:
        raise ValueError(
            "q_positions and kv_positions are needed where the sequence is divided over devices: "
            "a token's place in a shard does not say where it stands in its document."
        )
    if q_segment_ids is None:
        q_segment_ids, kv_segment_ids = jnp.ones_like(q_positions), jnp.ones_like(kv_positions)
    return jnp.stack([q_segment_ids, q_positions]), jnp.stack([kv_segment_ids, kv_positions])


def _arguments(static, q_ids, shard):
    """Keywords of `attend_forward` and `attend_backward` for queries against one shard."""
    return {
        "k": shard.kv[0],
        "v": shard.kv[1],
        "q_segment_ids": q_ids[0],
        "q_positions": q_ids[1],
        "kv_segment_ids": shard.ids[0],
        "kv_positions": shard.ids[1],
        "scale": static.scale,
        "window": static.window,
        "implementation": static.implementation,
    }


def _hop(static, tree):
    """Every array of the tree goes to the next rank."""
    ranks = jax.lax.axis_size(static.axis_name)
    pairs = [(rank, (rank + 1) % ranks) for rank in range(ranks)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, static.axis_name, pairs), tree)


def _join(one, other):
    """Two parts (out, lse) as one; lse is -inf where a part has seen nothing."""
    lse = jnp.logaddexp(one[1], other[1])
    top = jnp.where(jnp.isneginf(lse), 0, lse)
    weights = [jnp.exp(part[1] - top)[..., None] for part in (one, other)]
    return one[0] * weights[0] + other[0] * weights[1], lse


def _kept(out, lse):
    return checkpoint_name((out, lse), ATTENTION_RESIDUALS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(static, q, k, v, q_ids, kv_ids):
    return _ring_forward(static, q, k, v, q_ids, kv_ids)[0]


def _ring_forward(static, q, k, v, q_ids, kv_ids):
    ranks = jax.lax.axis_size(static.axis_name)

    def visit(shard, part):
        return _join(part, attend_forward(q, **_arguments(static, q_ids, shard)))

    def step(carry, _):
        shard, part = carry
        following = _hop(static, shard)
        return (following, visit(shard, part)), None

    acc = jnp.promote_types(q.dtype, jnp.float32)
    nothing = jnp.zeros(q.shape, acc), jnp.full(q.shape[:3], -jnp.inf, acc)
    carry = _Shard(jnp.stack([k, v]), kv_ids), nothing
    if ranks > 1:
        carry, _ = jax.lax.scan(step, carry, length=ranks - 1)
    out, lse = visit(*carry)
    out, lse = _kept(out.astype(v.dtype), lse)
    return out, (q, k, v, q_ids, kv_ids, out, lse)


def _ring_backward(static, residuals, d_out):
    q, k, v, q_ids, kv_ids, out, lse = residuals
    results = {"out": out, "lse": lse, "d_out": d_out}
    ranks = jax.lax.axis_size(static.axis_name)
    own = _Shard(jnp.stack([k, v]), kv_ids)

    def gradients(shard):
        dq, dk, dv = attend_backward(q, **_arguments(static, q_ids, shard), **results)
        return dq, jnp.stack([dk, dv])

    def visit(shard, d_kv, dq, *, last):
        """Work on a shard while the next one, and the sum for this one so far, are on their way."""
        following = None if last else _hop(static, shard)
        arrived = None if d_kv is None else _hop(static, d_kv)
        more_q, more_kv = gradients(shard)
        return following, more_kv if arrived is None else arrived + more_kv, dq + more_q

    # Foreign shards first: the first hop waits for no cotangent, and the last one, which takes the
    # sums home, is hidden behind the work on the rank's own shard.
    dq = jnp.zeros(q.shape, jnp.promote_types(q.dtype, jnp.float32))
    d_kv = None
    if ranks > 1:
        shard = _hop(static, own)
        if ranks > 2:
            carry = visit(shard, None, dq, last=False)
            if ranks > 3:
                carry, _ = jax.lax.scan(
                    lambda carry, _: (visit(*carry, last=False), None), carry, length=ranks - 3
                )
            shard, d_kv, dq = carry
        _, d_kv, dq = visit(shard, d_kv, dq, last=True)
    _, d_kv, dq = visit(own, d_kv, dq, last=True)
    return dq.astype(q.dtype), d_kv[0].astype(k.dtype), d_kv[1].astype(v.dtype), None, None


_ring.defvjp(_ring_forward, _ring_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(static, q, k, v, q_ids, kv_ids):
    return _gathered_forward(static, q, k, v, q_ids, kv_ids)[0]


def _gather(static, k, v, kv_ids):
    """The keys of all ranks, rank after rank."""
    local = _Shard(jnp.stack([k, v]), kv_ids)
    return _Shard(*(jax.lax.all_gather(x, static.axis_name, axis=2, tiled=True) for x in local))


def _gathered_forward(static, q, k, v, q_ids, kv_ids):
    shard = _gather(static, k, v, kv_ids)
    out, lse = attend_forward(q, **_arguments(static, q_ids, shard))
    out, lse = _kept(out.astype(v.dtype), lse)
    return out, (q, k, v, q_ids, kv_ids, out, lse)


def _gathered_backward(static, residuals, d_out):
    q, k, v, q_ids, kv_ids, out, lse = residuals
    shard = _gather(static, k, v, kv_ids)
    dq, dk, dv = attend_backward(
        q, **_arguments(static, q_ids, shard), out=out, lse=lse, d_out=d_out
    )
    d_kv = jax.lax.psum_scatter(
        jnp.stack([dk, dv]), static.axis_name, scatter_dimension=2, tiled=True
    )
    return dq.astype(q.dtype), d_kv[0].astype(k.dtype), d_kv[1].astype(v.dtype), None, None


_gathered.defvjp(_gathered_forward, _gathered_backward)
