"""Segment attention block by block in plain XLA operations: no T x S array, forward or backward.

Query blocks are scanned over; each visits the key blocks on its work list (see `blocks.py`) with a
running softmax. Residuals are the inputs, the output and one log-sum per query; the backward pass
forms each block's probabilities anew. The batch is never split or scanned over, so data
parallelism by sharding passes through.

Letters: B rows, T queries, S keys, N query heads, K key-value heads, G = N / K, H head width,
I query blocks of P positions, J key blocks of R positions.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pangu_jax.kernels.implementation import current_platform
from pangu_jax.kernels.segment_attention.blocks import work_list
from pangu_jax.kernels.segment_attention.reference import ATTENTION_RESIDUALS, row_order, visible


class _Static(NamedTuple):
    scale: float
    window: int | None
    block_q: int
    block_k: int


class _Ids(NamedTuple):
    """Segment ids and positions, (B, T) and (B, S) int32 or None, as in the public function."""

    q_segments: jax.Array | None
    k_segments: jax.Array | None
    q_positions: jax.Array | None
    k_positions: jax.Array | None


def default_block() -> int:
    """Positions of a block: 64 measured best on CPU (cache), 512 elsewhere is not measured."""
    return 64 if current_platform() == "cpu" else 512


def segment_attention_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    scale: float,
    window: int | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
) -> jax.Array:
    """Arguments and value as in `api.segment_attention`; see the contract there."""
    ids = _Ids(q_segment_ids, kv_segment_ids, q_positions, kv_positions)
    static, *padded = _padded(q, k, v, ids, scale, window, block_q, block_k)
    return _attention(static, *padded)[:, : q.shape[1]]


def attend_forward_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    scale: float,
    window: int | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and values as in `parts.attend_forward`."""
    ids = _Ids(q_segment_ids, kv_segment_ids, q_positions, kv_positions)
    static, *padded = _padded(q, k, v, ids, scale, window, block_q, block_k)
    acc = jnp.promote_types(q.dtype, jnp.float32)
    out, log_sums = _forward_blocks(static, *padded, acc)
    lse = join(log_sums[..., None], static.block_q, q.shape[2] // k.shape[2])[..., 0]
    lse = jnp.where(lse > jnp.finfo(acc).min, lse, -jnp.inf)
    return out[:, : q.shape[1]], lse[:, : q.shape[1]]


def attend_backward_xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    scale: float,
    window: int | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arguments and values as in `parts.attend_backward`."""
    ids = _Ids(q_segment_ids, kv_segment_ids, q_positions, kv_positions)
    static, *padded = _padded(q, k, v, ids, scale, window, block_q, block_k)
    # Rows that see nothing are masked; a finite number there keeps the exponential finite too.
    lse = pad(jnp.where(jnp.isneginf(lse), 0, lse), static.block_q)
    log_sums = split(lse[..., None], static.block_q, q.shape[2] // k.shape[2])[..., 0]
    out, d_out = pad(out, static.block_q), pad(d_out, static.block_q)
    types = (jnp.promote_types(q.dtype, jnp.float32),) * 3
    dq, dk, dv = _backward_blocks(static, *padded, out, log_sums, d_out, types)
    return dq[:, : q.shape[1]], dk[:, : k.shape[1]], dv[:, : v.shape[1]]


def _padded(q, k, v, ids, scale, window, block_q, block_k):
    """(static facts, q, k, v, ids), the arrays padded to whole blocks."""
    queries, keys = q.shape[1], k.shape[1]
    block_q, block_k = block_q or default_block(), block_k or default_block()
    static = _Static(float(scale), window, min(block_q, queries), min(block_k, keys))
    q, k, v = pad(q, static.block_q), pad(k, static.block_k), pad(v, static.block_k)
    if ids.q_segments is None and ids.q_positions is not None and k.shape[1] != keys:
        # Only the segment id 0 of what is padded tells it from real keys.
        ids = ids._replace(
            q_segments=jnp.ones_like(ids.q_positions), k_segments=jnp.ones_like(ids.k_positions)
        )
    ids = _Ids(
        pad(ids.q_segments, static.block_q),
        pad(ids.k_segments, static.block_k),
        pad(ids.q_positions, static.block_q),
        pad(ids.k_positions, static.block_k),
    )
    return static, q, k, v, ids


def pad(x, block):
    if x is None or x.shape[1] % block == 0:
        return x
    missing = -x.shape[1] % block
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))


def split(x, block, groups=1):
    """(B, T, heads, H) -> (I, B, heads / groups, groups * P, H): the groups of a head as rows."""
    batch, length, heads, width = x.shape
    x = x.reshape(batch, length // block, block, heads // groups, groups, width)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(
        length // block, batch, heads // groups, groups * block, width
    )


def join(x, block, groups=1):
    """The inverse of `_split`."""
    count, batch, heads, _, width = x.shape
    x = x.reshape(count, batch, heads, groups, block, width).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, count * block, heads * groups, width)


class _Problem(NamedTuple):
    """Arrays cut into blocks: k and v (J, B, K, R, H), ids (I or J, B, P or R)."""

    static: _Static
    k: jax.Array
    v: jax.Array
    ids: _Ids
    groups: int
    acc: jnp.dtype

    def dot(self, equation, *operands):
        return jnp.einsum(equation, *operands, preferred_element_type=self.acc)

    def mask(self, i, j):
        """bool (B or 1, 1, G * P, R) of query block i against key block j."""
        s = self.static

        def of(x, at, size, positions):
            if x is not None:
                return x[at]
            return row_order(size) + at * size if positions else None

        mask = visible(
            of(self.ids.q_segments, i, s.block_q, False),
            of(self.ids.k_segments, j, s.block_k, False),
            of(self.ids.q_positions, i, s.block_q, True),
            of(self.ids.k_positions, j, s.block_k, True),
            s.window,
        )
        return jnp.tile(mask, (1, self.groups, 1))[:, None]

    def logits(self, q, j):
        return self.dot("bkph,bkrh->bkpr", q, self.k[j]) * self.static.scale


def _problem(static, q, k, v, ids):
    """(the arrays in blocks, the work list, query blocks (I, B, K, G * P, H))."""
    groups = q.shape[2] // k.shape[2]
    sizes = static.block_q, static.block_k
    work = work_list(
        *ids, blocks=(q.shape[1] // sizes[0], k.shape[1] // sizes[1]), sizes=sizes,
        window=static.window,
    )  # fmt: skip

    def cut(x, block):
        return None if x is None else jnp.moveaxis(x.reshape(x.shape[0], -1, block), 1, 0)

    cut_ids = _Ids(
        cut(ids.q_segments, sizes[0]),
        cut(ids.k_segments, sizes[1]),
        cut(ids.q_positions, sizes[0]),
        cut(ids.k_positions, sizes[1]),
    )
    acc = jnp.promote_types(q.dtype, jnp.float32)
    k, v = split(k, sizes[1]), split(v, sizes[1])
    problem = _Problem(static, k, v, cut_ids, groups, acc)
    return problem, work, split(q, sizes[0], groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, ids):
    return _forward(static, q, k, v, ids)[0]


def _forward_blocks(static, q, k, v, ids, dtype):
    """(out (B, T, N, H) of type `dtype`, log-sums (I, B, K, G * P), the lowest number if nothing
    is seen)."""
    problem, work, blocks = _problem(static, q, k, v, ids)
    acc, floor = problem.acc, jnp.finfo(problem.acc).min

    def query_block(_, x):
        i, qi, keys, count = x

        def visit(at, state):
            top, total, out = state
            j = keys[at]
            mask = problem.mask(i, j)
            s = jnp.where(mask, problem.logits(qi, j), floor)
            new_top = jnp.maximum(top, jnp.max(s, axis=-1))
            p = jnp.where(mask, jnp.exp(s - new_top[..., None]), 0)
            shrink = jnp.exp(top - new_top)
            product = problem.dot("bkpr,bkrh->bkph", p.astype(v.dtype), problem.v[j])
            return (
                new_top,
                total * shrink + jnp.sum(p, axis=-1),
                out * shrink[..., None] + product,
            )

        rows = qi.shape[:-1]
        start = jnp.full(rows, floor), jnp.zeros(rows, acc), jnp.zeros(qi.shape, acc)
        top, total, out = jax.lax.fori_loop(0, count, visit, start)
        seen = jnp.where(total > 0, total, 1)
        return None, ((out / seen[..., None]).astype(dtype), top + jnp.log(seen))

    order = jnp.arange(blocks.shape[0])
    _, (out, log_sums) = jax.lax.scan(query_block, None, (order, blocks, *work))
    return join(out, static.block_q, problem.groups), log_sums


def _backward_blocks(static, q, k, v, ids, out, log_sums, d_out, types):
    """(dq, dk, dv) of the given types; log_sums as from `_forward_blocks`."""
    problem, work, blocks = _problem(static, q, k, v, ids)
    acc, dtype = problem.acc, v.dtype
    product = jnp.sum(d_out.astype(acc) * out.astype(acc), axis=-1, keepdims=True)
    delta = split(product, static.block_q, problem.groups)[..., 0]
    d_blocks = split(d_out, static.block_q, problem.groups)

    def query_block(carry, x):
        i, qi, gi, turned_q, turned_g, log_sum, delta_i, keys, count = x

        def visit(at, state):
            dq, dk, dv = state
            j = keys[at]
            s = problem.logits(qi, j)
            p = jnp.where(problem.mask(i, j), jnp.exp(s - log_sum[..., None]), 0)
            dp = problem.dot("bkph,bkrh->bkpr", gi, problem.v[j])
            ds = (p * (dp - delta_i[..., None]) * static.scale).astype(dtype)
            dv = dv.at[j].add(problem.dot("bkhp,bkpr->bkhr", turned_g, p.astype(dtype)))
            dk = dk.at[j].add(problem.dot("bkhp,bkpr->bkhr", turned_q, ds))
            return dq + problem.dot("bkpr,bkrh->bkph", ds, problem.k[j]), dk, dv

        dq, *carry = jax.lax.fori_loop(0, count, visit, (jnp.zeros(qi.shape, acc), *carry))
        return tuple(carry), dq.astype(types[0])

    # The narrow side of the products for keys and values is turned round beforehand: XLA on CPU has
    # no fast product that reads the wide side, p or ds, in columns.
    turned = blocks.swapaxes(-1, -2), d_blocks.swapaxes(-1, -2)
    zeros = jnp.zeros(problem.k.swapaxes(-1, -2).shape, acc)
    order = jnp.arange(blocks.shape[0])
    xs = (order, blocks, d_blocks, *turned, log_sums, delta, *work)
    (dk, dv), dq = jax.lax.scan(query_block, (zeros, zeros), xs)
    return (
        join(dq, static.block_q, problem.groups),
        join(dk.swapaxes(-1, -2), static.block_k).astype(types[1]),
        join(dv.swapaxes(-1, -2), static.block_k).astype(types[2]),
    )


def _forward(static, q, k, v, ids):
    out, log_sums = _forward_blocks(static, q, k, v, ids, v.dtype)
    out, log_sums = checkpoint_name((out, log_sums), ATTENTION_RESIDUALS)
    return out, (q, k, v, ids, out, log_sums)


def _backward(static, residuals, d_out):
    types = tuple(x.dtype for x in residuals[:3])
    return *_backward_blocks(static, *residuals, d_out, types), None


_attention.defvjp(_forward, _backward)
