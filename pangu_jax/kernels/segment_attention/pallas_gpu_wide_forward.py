"""Forward kernel of segment attention with warp specialisation. See pallas_gpu_wide.

Status: run on an H100 against the float32 definition; speed in docs/kernels.md.

A CUDA block owns 128 queries of one head. Both compute warpgroups visit the same key tiles, so that
each slot of the ring is given back by exactly two arrivals. Key tiles of a block are three runs:
masked, without mask, masked (documents and causality cut at the ends alone).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels.segment_attention import pallas_gpu_wide as wide
from pangu_jax.kernels.segment_attention.pallas_gpu_wide import MEMORY, ROWS, START, TALL, struct


def forward(spec, ids, q, k, v):
    """Output and log-sums.

    Args:
      spec: wide.Spec.
      ids: the four arrays of `wide.prepare_ids`.
      q: [B, T, N, H]; k, v: [B, S, K, H].

    Returns:
      out like q, and float32 [B, N, T]: log2 of the sum of the exponentials of a query; not above
      START for queries that see nothing.
    """
    ops, config = wide.Ops(spec), spec.config
    tiles = spec.lengths[0] // TALL
    block, stages = config.block_k, config.stages
    ids = dict(zip(("q_segments", "k_segments", "q_positions", "k_positions"), ids, strict=True))
    span = wide.spans(tuple(ids.values()), spec.lengths, (TALL, block), spec.window, 2)

    def body(place, warpgroup, refs, outs, scratch):
        b, n = place["b"], place["n"]
        i = tiles - 1 - place["i"]  # Late tiles have the most keys: start them first.
        row = 0 if spec.shared_ids else b
        first, whole_first, whole_last, last = (refs["span"][row, i, m] for m in range(4))

        @pl.when(warpgroup == MEMORY)
        def _copy():
            ops.registers(config.memory_registers, "decrease")
            kv = lax.div(n, jnp.int32(spec.groups))

            def issue(name, t, slot):
                plgpu.copy_gmem_to_smem(
                    refs[name].at[b, pl.ds((first + t) * block, block), kv],
                    scratch[name].at[slot],
                    scratch[name + "_ready"].at[slot],
                )

            wide.fill(last - first, stages, ("k", "v"), scratch, issue)

        @pl.when(warpgroup != MEMORY)
        def _compute():
            ops.registers(config.compute_registers, "increase")
            start = i * TALL + warpgroup * ROWS
            own = pl.ds(start, ROWS)
            queries = scratch["q"].at[warpgroup]
            plgpu.copy_gmem_to_smem(
                refs["q"].at[b, own, n], queries, scratch["q_ready"].at[warpgroup]
            )
            plgpu.barrier_wait(scratch["q_ready"].at[warpgroup])
            masked = _mask(spec, ops, refs, row, start, block)
            state = _softmax_state(spec, ops)
            walk = _Walk(spec, ops, queries, scratch, warpgroup, first, last)
            state = walk.begin(masked, state)
            second = first + 1
            whole_from = jnp.clip(whole_first, second, last)
            whole_to = jnp.clip(whole_last, whole_from, last)
            for begin, end, mask in (
                (second, whole_from, masked),
                (whole_from, whole_to, lambda logits, j: logits),
                (whole_to, last, masked),
            ):
                state = lax.fori_loop(begin, end, walk.step(mask), state)
            out, top, total = walk.end(state)
            seen = jnp.where(total > 0, total, 1.0)
            inverse = ops.spread(1.0 / seen, (ROWS, spec.width))
            # q is no longer needed; its shared memory carries the result out.
            queries[...] = (out * inverse).astype(spec.dtype)
            scratch["log_sum"].at[warpgroup][...] = top + jnp.log(seen) * math.log2(math.e)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, outs["out"].at[b, own, n])
            plgpu.copy_smem_to_gmem(scratch["log_sum"].at[warpgroup], outs["log_sum"].at[b, n, own])
            plgpu.wait_smem_to_gmem(0)

    scratch = {
        "q": wide.tile_buffer(spec, 2, ROWS),
        "k": wide.tile_buffer(spec, stages, block),
        "v": wide.tile_buffer(spec, stages, block),
        "log_sum": plgpu.SMEM((2, ROWS), jnp.float32),
        "q_ready": plgpu.Barrier(num_barriers=2),
        "k_ready": plgpu.Barrier(num_barriers=stages),
        "v_ready": plgpu.Barrier(num_barriers=stages),
        "k_free": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        "v_free": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        "turn": plgpu.Barrier(num_barriers=2),
    }
    batch, length, heads, _ = q.shape
    out_type = {
        "out": struct(q.shape, spec.dtype),
        "log_sum": struct((batch, heads, length), jnp.float32),
    }
    operands = {"q": q, "k": k, "v": v, "span": span}
    operands |= {name: x for name, x in ids.items() if x is not None}
    counts = tiles, heads, batch
    outs = wide.launch(spec, body, counts, operands, out_type, scratch)
    return outs["out"], outs["log_sum"]


def _mask(spec, ops, refs, row, start, block):
    """Function (logits, key tile) -> logits with -inf where a query does not see a key."""
    kinds = ("segments", "positions")[: {"order": 0, "segments": 1, "positions": 2}[spec.mask]]
    of_queries = [ops.rows(refs[f"q_{kind}"].at[row, pl.ds(start, ROWS)]) for kind in kinds]

    def masked(logits, j):
        keys = pl.ds(j * block, block)

        def ids(side, kind):
            if side == 0:
                return of_queries[kind]
            return ops.columns(refs[f"k_{kinds[kind]}"].at[row, keys])

        see = wide.visible(spec, ops, ids, (start, j * block), logits.shape, 0)
        return jnp.where(see, logits, -jnp.inf)

    return masked


def _softmax_state(spec, ops):
    """Running output [64, H], maximum and sum [64], weights [64, block] of the step before."""
    weights = ops.zeros(spec.config.block_k).astype(spec.dtype)
    return ops.zeros(spec.width), ops.full_rows(START), ops.full_rows(0.0), weights


class _Walk:
    """The steps of one compute warpgroup over its key tiles.

    Its state is that of `_softmax_state`. Step j multiplies q by k[j] and, unless the schedule is
    'plain', the weights of step j - 1 by v[j - 1].

    Barriers: for every step, k_ready of its slot is waited for once, in the step before, and k_free
    of it arrived at once; the same for v, in the step after; whatever the mask. 'turn' n is waited
    for by warpgroup n in each step but the first and arrived at as often: once by `begin` of
    warpgroup 1 for warpgroup 0, then by the other warpgroup's steps, less the last of warpgroup 1.
    """

    def __init__(self, spec, ops, queries, scratch, warpgroup, first, last):
        self.spec, self.ops, self.queries, self.scratch = spec, ops, queries, scratch
        self.warpgroup, self.first, self.last = warpgroup, first, last
        self.schedule = spec.config.schedule
        self.shape = (ROWS, spec.width)

    def slot(self, j):
        return lax.rem(j - self.first, jnp.int32(self.spec.config.stages))

    def tile(self, name, j):
        return self.scratch[name].at[self.slot(j)]

    def wait(self, name, j):
        plgpu.barrier_wait(self.scratch[name + "_ready"].at[self.slot(j)])

    def wait_ahead(self, j):
        """Waits for the k of the step after j, if there is one."""

        @pl.when(j + 1 < self.last)
        def _wait():
            self.wait("k", j + 1)

    def release(self, name, j):
        plgpu.barrier_arrive(self.scratch[name + "_free"].at[self.slot(j)])

    def softmax(self, logits, top, total):
        """(new maximum, new sum, weights fp32, factor of everything summed before)."""
        scale = self.spec.scale_base2
        new_top = jnp.maximum(top, logits.max(axis=1) * scale)
        p = jnp.exp2(logits * scale - self.ops.spread(new_top, logits.shape))
        shrink = jnp.exp2(top - new_top)
        return new_top, total * shrink + p.sum(axis=1), p, shrink

    def begin(self, mask, state):
        out, top, total, _ = state
        self.wait("k", self.first)
        logits = self.ops.product(self.queries, self.tile("k", self.first))
        self.release("k", self.first)
        self.wait_ahead(self.first)
        if self.schedule in ("turns", "pingpong"):

            @pl.when((self.warpgroup == 1) & (self.first + 1 < self.last))
            def _first_turn():
                plgpu.barrier_arrive(self.scratch["turn"].at[0])

        top, total, p, _ = self.softmax(mask(logits, self.first), top, total)
        return out, top, total, p.astype(self.spec.dtype)

    def step(self, mask):
        return lambda j, state: (self._plain if self.schedule == "plain" else self._step)(
            mask, j, state
        )

    def _plain(self, mask, j, state):
        out, top, total, p = state
        self.wait("v", j - 1)
        out = self.ops.add_product(out, p, self.tile("v", j - 1))
        self.release("v", j - 1)
        logits = self.ops.product(self.queries, self.tile("k", j))
        self.release("k", j)
        self.wait_ahead(j)
        top, total, p, shrink = self.softmax(mask(logits, j), top, total)
        p = p.astype(self.spec.dtype)
        return out * self.ops.spread(shrink, self.shape), top, total, p

    def _step(self, mask, j, state):
        out, top, total, p = state
        turns = self.schedule in ("turns", "pingpong")
        self.wait("v", j - 1)
        if turns:
            plgpu.barrier_wait(self.scratch["turn"].at[self.warpgroup])

        def started():
            if turns:

                @pl.when((self.warpgroup == 0) | (j + 1 < self.last))
                def _pass_on():
                    plgpu.barrier_arrive(self.scratch["turn"].at[1 - self.warpgroup])

        def use(logits):
            self.release("k", j)
            return self.softmax(mask(logits, j), top, total)

        out, top, total, p, shrink = self.ops.add_product_under(
            out, p, self.tile("v", j - 1), (self.queries, self.tile("k", j)),
            (top, total, self.ops.zeros(self.spec.config.block_k), top), started, use,
            lambda: self.wait_ahead(j), self.schedule == "pingpong",
        )  # fmt: skip
        self.release("v", j - 1)
        # Not earlier: until here the product with v reads the registers of the former weights.
        p = p.astype(self.spec.dtype)
        return out * self.ops.spread(shrink, self.shape), top, total, p

    def end(self, state):
        out, top, total, p = state
        self.wait("v", self.last - 1)
        out = self.ops.add_product(out, p, self.tile("v", self.last - 1))
        self.release("v", self.last - 1)
        return out, top, total
