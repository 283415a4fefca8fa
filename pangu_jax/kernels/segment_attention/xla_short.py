"""Segment attention of short rows in plain XLA operations: query blocks side by side, no loop.

Block i of the queries meets all keys up to its own end in one product, so that there is no running
softmax, and the blocks do not depend on each other. On a CPU that is faster than the loop over
pairs of blocks (`xla.py`) as long as all logits fit into the cache: loops there run their
operations one by one, each too small for several cores. Pairs of documents that are hidden from
each other are masked, not skipped. Residuals are those of `xla.py`.

Letters: B rows, T positions, N query heads, K key-value heads, G = N / K, H head width,
I query blocks of P positions, C keys up to the end of a block.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pangu_jax.kernels.implementation import current_platform
from pangu_jax.kernels.segment_attention.reference import ATTENTION_RESIDUALS, row_order, visible
from pangu_jax.kernels.segment_attention.xla import (
    join,
    pad,
    segment_attention_xla,
    split,
)

# Measured on 2 CPU cores, see docs/kernels.md.
BLOCK = 32
LONGEST, LONGEST_WITH_SEGMENTS = 512, 256
_LOGITS = 1 << 24  # of all rows and heads together: 64 MiB in float32


class _Static(NamedTuple):
    scale: float
    window: int | None
    block: int


def segment_attention_on_xla(q: jax.Array, k: jax.Array, v: jax.Array, **arguments) -> jax.Array:
    """`segment_attention_short` where it was measured faster, on a CPU in row order, and
    `xla.segment_attention_xla` elsewhere; arguments as in `api.segment_attention`."""
    rows, length, heads, _ = q.shape
    ids = arguments["q_segment_ids"]
    if (
        current_platform() == "cpu"
        and arguments["q_positions"] is None
        and length <= (LONGEST if ids is None else LONGEST_WITH_SEGMENTS)
        and rows * heads * length * length <= _LOGITS
    ):
        given = {name: x for name, x in arguments.items() if not name.endswith("_positions")}
        return segment_attention_short(q, k, v, **given)
    return segment_attention_xla(q, k, v, **arguments)


def segment_attention_short(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    scale: float,
    window: int | None = None,
    block: int | None = None,
) -> jax.Array:
    """As `api.segment_attention` for as many queries as keys in row order; block: its queries."""
    length = q.shape[1]
    block = min(block or BLOCK, length)
    # What is padded comes last in row order, so that no real query sees it.
    q, k, v, *ids = (pad(x, block) for x in (q, k, v, q_segment_ids, kv_segment_ids))
    return _attention(_Static(float(scale), window, block), q, k, v, tuple(ids))[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, ids):
    return _forward(static, q, k, v, ids)[0]


class _Blocks(NamedTuple):
    """What both passes read. queries: (I, B, K, G * P, H); keys, values: (B, K, T, H)."""

    static: _Static
    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    ids: tuple[jax.Array | None, jax.Array | None]
    groups: int
    acc: jnp.dtype

    @classmethod
    def cut(cls, static, q, k, v, ids):
        groups = q.shape[2] // k.shape[2]
        acc = jnp.promote_types(q.dtype, jnp.float32)
        keys, values = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
        return cls(static, split(q, static.block, groups), keys, values, ids, groups, acc)

    def dot(self, equation, *operands):
        return jnp.einsum(equation, *operands, preferred_element_type=self.acc)

    def end(self, i):
        """Keys that block i meets."""
        return (i + 1) * self.static.block

    def mask(self, i):
        """bool (B or 1, 1, G * P, C)."""
        start, end = i * self.static.block, self.end(i)
        order = row_order(end)
        q_ids, k_ids = self.ids
        if q_ids is not None:
            q_ids, k_ids = q_ids[:, start:end], k_ids[:, :end]
        mask = visible(q_ids, k_ids, order[:, start:], order, self.static.window)
        return jnp.tile(mask, (1, self.groups, 1))[:, None]

    def logits(self, i):
        keys = self.keys[:, :, : self.end(i)]
        return self.dot("bkph,bkch->bkpc", self.queries[i], keys) * self.static.scale


def _forward(static, q, k, v, ids):
    blocks = _Blocks.cut(static, q, k, v, ids)
    floor = jnp.finfo(blocks.acc).min
    outs, log_sums = [], []
    for i in range(len(blocks.queries)):
        mask = blocks.mask(i)
        s = jnp.where(mask, blocks.logits(i), floor)
        top = jnp.max(s, axis=-1, keepdims=True)
        p = jnp.exp(s - top)
        if ids[0] is not None:  # a query of padding sees nothing, and its floor is not its maximum
            p = jnp.where(mask, p, 0)
        total = jnp.sum(p, axis=-1, keepdims=True)
        total = jnp.where(total > 0, total, 1)
        values = blocks.values[:, :, : blocks.end(i)]
        outs.append(blocks.dot("bkpc,bkch->bkph", p.astype(v.dtype), values) / total)
        log_sums.append((top + jnp.log(total))[..., 0])
    out = join(jnp.stack(outs).astype(v.dtype), static.block, blocks.groups)
    out, log_sums = checkpoint_name((out, jnp.stack(log_sums)), ATTENTION_RESIDUALS)
    return out, (q, k, v, ids, out, log_sums)


def _backward(static, residuals, d_out):
    q, k, v, ids, out, log_sums = residuals
    blocks = _Blocks.cut(static, q, k, v, ids)
    acc, dtype = blocks.acc, v.dtype
    product = jnp.sum(d_out.astype(acc) * out.astype(acc), axis=-1, keepdims=True)
    delta = split(product, static.block, blocks.groups)
    grads = split(d_out, static.block, blocks.groups)
    # The narrow side of the products for keys and values is turned round beforehand, all of it in
    # one go: XLA on CPU has no fast product that reads the wide side, p or ds, in columns.
    turned_queries, turned_grads = blocks.queries.swapaxes(-1, -2), grads.swapaxes(-1, -2)
    dqs, dk, dv = [], 0, 0
    for i in range(len(blocks.queries)):
        end = blocks.end(i)
        keys, values = blocks.keys[:, :, :end], blocks.values[:, :, :end]
        p = jnp.where(blocks.mask(i), jnp.exp(blocks.logits(i) - log_sums[i][..., None]), 0)
        dp = blocks.dot("bkph,bkch->bkpc", grads[i], values)
        ds = (p * (dp - delta[i]) * static.scale).astype(dtype)
        dqs.append(blocks.dot("bkpc,bkch->bkph", ds, keys))
        missing = [(0, 0), (0, 0), (0, 0), (0, q.shape[1] - end)]
        dk += jnp.pad(blocks.dot("bkhp,bkpc->bkhc", turned_queries[i], ds), missing)
        dv += jnp.pad(blocks.dot("bkhp,bkpc->bkhc", turned_grads[i], p.astype(dtype)), missing)
    return (
        join(jnp.stack(dqs).astype(q.dtype), static.block, blocks.groups),
        jnp.moveaxis(dk, 3, 1).astype(k.dtype),
        jnp.moveaxis(dv, 3, 1).astype(v.dtype),
        None,
    )


_attention.defvjp(_forward, _backward)
