"""Forward and backward kernels of segment attention on Hopper GPUs. See pallas_gpu_common.

A block owns 64 queries of one head (forward, gradient of q) or 64 keys of one key-value head
(gradients of k and v, over all query heads that share it). No block writes where another writes, so
results repeat bit for bit. The backward kernels form the probabilities anew from the log-sums.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels.mosaic_gpu import TILE, Ops, ring, struct
from pangu_jax.kernels.segment_attention import pallas_gpu_common as common
from pangu_jax.kernels.segment_attention.pallas_gpu_common import STAGES, START


def _own(i):
    return pl.ds(i * TILE, TILE)


def forward(spec, ids, q, k, v):
    """Output and log-sums.

    Args:
      spec: common.Spec.
      ids: results of `common.prepare`.
      q: [B, N, I * 64, H]; k, v: [B, K, J * 64, H].

    Returns:
      out like q, and float32 [B, N, I, 64]: log2 of the sum of the exponentials of a query.
    """
    ops = Ops(spec.interpret)
    q_ids, k_ids, q_span, _, whole = ids
    batch, heads = q.shape[:2]

    def body(refs, outs, scratch):
        # Late tiles have the most keys: start them first.
        i = spec.tiles[0] - 1 - lax.axis_index("i")
        n, b = lax.axis_index("n"), lax.axis_index("b")
        row = 0 if spec.shared_ids else b
        kv = lax.div(n, jnp.int32(spec.groups))
        first, last = refs["span"][row, i, 0], refs["span"][row, i, 1]
        barrier = scratch["own_barrier"]
        plgpu.copy_gmem_to_smem(refs["q_ids"].at[row, i], scratch["q_ids"], barrier)
        plgpu.copy_gmem_to_smem(refs["q"].at[b, n, _own(i)], scratch["q"], barrier)
        plgpu.barrier_wait(barrier)

        def issue(j, slot):
            ready = scratch["ready"].at[slot]
            plgpu.copy_gmem_to_smem(refs["k_ids"].at[row, j], scratch["k_ids"].at[slot], ready)
            for name in ("k", "v"):
                source = refs[name].at[b, kv, _own(j)]
                plgpu.copy_gmem_to_smem(source, scratch[name].at[slot], ready)

        def consume(j, slot, carry):
            top, total, out = carry
            plgpu.barrier_wait(scratch["ready"].at[slot])
            whole = refs["whole"][row, i, j]
            logits = ops.product([(scratch["q"], scratch["k"].at[slot])]) * spec.scale_base2
            key_ids = scratch["k_ids"].at[slot]
            logits = common.masked(spec, ops, logits, whole, scratch["q_ids"], key_ids, 0)
            new_top = jnp.maximum(top, logits.max(axis=1))
            p = jnp.exp2(logits - ops.spread(new_top))
            shrink = jnp.exp2(top - new_top)
            total = total * shrink + p.sum(axis=1)
            out = out * ops.spread(shrink, spec.width)
            out = ops.accumulate(out, p.astype(spec.dtype), scratch["v"].at[slot])
            return new_top, total, out

        start = ops.full_rows(jnp.float32(START)), ops.full_rows(jnp.float32(0))
        start = (*start, ops.full(jnp.float32(0), spec.width))
        top, total, out = ring(ops, first, last, STAGES, issue, consume, start)
        seen = jnp.where(total > 0, total, 1.0)
        # q is no longer needed; its shared memory carries the result out.
        scratch["q"][...] = (out / ops.spread(seen, spec.width)).astype(spec.dtype)
        scratch["log_sum"][...] = top + jnp.log(seen) * math.log2(math.e)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(scratch["q"], outs["out"].at[b, n, _own(i)])
        plgpu.copy_smem_to_gmem(scratch["log_sum"], outs["log_sum"].at[b, n, i])
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        "q": common.tile_buffer(spec),
        "k": common.tile_buffer(spec, STAGES),
        "v": common.tile_buffer(spec, STAGES),
        "q_ids": common.ids_buffer(),
        "k_ids": common.ids_buffer(STAGES),
        "log_sum": plgpu.SMEM((TILE,), jnp.float32),
        "own_barrier": plgpu.Barrier(num_arrivals=2),
        "ready": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
    }
    out_type = {
        "out": struct(q.shape, spec.dtype),
        "log_sum": struct((batch, heads, spec.tiles[0], TILE), jnp.float32),
    }
    operands = {
        "q": q,
        "k": k,
        "v": v,
        "q_ids": q_ids,
        "k_ids": k_ids,
        "span": q_span,
        "whole": whole,
    }
    grid = (spec.tiles[0], heads, batch)
    outs = common.call(spec, body, grid, ("i", "n", "b"), operands, out_type, scratch)
    return outs["out"], outs["log_sum"]


def query_gradient(spec, ids, q, k, v, g, sums):
    """dq like q. g: cotangent of the output; sums: float32 [B, N, I, 2, 64], the log-sums and the
    row sums of g * out; others as in `forward`."""
    ops = Ops(spec.interpret)
    q_ids, k_ids, q_span, _, whole = ids

    def body(refs, outs, scratch):
        i = spec.tiles[0] - 1 - lax.axis_index("i")
        n, b = lax.axis_index("n"), lax.axis_index("b")
        row = 0 if spec.shared_ids else b
        kv = lax.div(n, jnp.int32(spec.groups))
        first, last = refs["span"][row, i, 0], refs["span"][row, i, 1]
        barrier = scratch["own_barrier"]
        plgpu.copy_gmem_to_smem(refs["q_ids"].at[row, i], scratch["q_ids"], barrier)
        plgpu.copy_gmem_to_smem(refs["sums"].at[b, n, i], scratch["sums"], barrier)
        for name in ("q", "g"):
            plgpu.copy_gmem_to_smem(refs[name].at[b, n, _own(i)], scratch[name], barrier)
        plgpu.barrier_wait(barrier)

        def issue(j, slot):
            ready = scratch["ready"].at[slot]
            plgpu.copy_gmem_to_smem(refs["k_ids"].at[row, j], scratch["k_ids"].at[slot], ready)
            for name in ("k", "v"):
                source = refs[name].at[b, kv, _own(j)]
                plgpu.copy_gmem_to_smem(source, scratch[name].at[slot], ready)

        def compute(dq):
            ops.clear(dq)
            log_sum = ops.vector(scratch["sums"].at[0], 0)
            delta = ops.vector(scratch["sums"].at[1], 0)

            def consume(j, slot, carry):
                plgpu.barrier_wait(scratch["ready"].at[slot])
                keys, key_ids = scratch["k"].at[slot], scratch["k_ids"].at[slot]
                whole = refs["whole"][row, i, j]
                logits = ops.product([(scratch["q"], keys)]) * spec.scale_base2
                logits = common.masked(spec, ops, logits, whole, scratch["q_ids"], key_ids, 0)
                p = jnp.exp2(logits - log_sum)
                ds = p * (ops.product([(scratch["g"], scratch["v"].at[slot])]) - delta)
                ops.mma(dq, ds.astype(spec.dtype), keys)
                return carry

            ring(ops, first, last, STAGES, issue, consume)
            ops.wait()
            return dq[...]

        dq = pl.run_scoped(compute, ops.accumulator(spec.width))
        scratch["q"][...] = (dq * spec.scale).astype(spec.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(scratch["q"], outs["dq"].at[b, n, _own(i)])
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        "q": common.tile_buffer(spec),
        "g": common.tile_buffer(spec),
        "k": common.tile_buffer(spec, STAGES),
        "v": common.tile_buffer(spec, STAGES),
        "q_ids": common.ids_buffer(),
        "sums": plgpu.SMEM((2, TILE), jnp.float32),
        "k_ids": common.ids_buffer(STAGES),
        "own_barrier": plgpu.Barrier(num_arrivals=4),
        "ready": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
    }
    operands = {
        "q": q, "k": k, "v": v, "g": g, "sums": sums, "q_ids": q_ids, "k_ids": k_ids,
        "span": q_span, "whole": whole,
    }  # fmt: skip
    grid = (spec.tiles[0], q.shape[1], q.shape[0])
    out_type = {"dq": struct(q.shape, spec.dtype)}
    return common.call(spec, body, grid, ("i", "n", "b"), operands, out_type, scratch)["dq"]


def key_gradients(spec, ids, q, k, v, g, sums):
    """(dk, dv) like k; arguments as in `query_gradient`. Here keys run along a tile's rows."""
    ops = Ops(spec.interpret)
    q_ids, k_ids, _, k_span, whole = ids

    def body(refs, outs, scratch):
        j = lax.axis_index("j")  # Early tiles are seen by the most queries and come first.
        kv, b = lax.axis_index("k"), lax.axis_index("b")
        row = 0 if spec.shared_ids else b
        first, last = refs["span"][row, j, 0], refs["span"][row, j, 1]
        barrier = scratch["own_barrier"]
        plgpu.copy_gmem_to_smem(refs["k_ids"].at[row, j], scratch["k_ids"], barrier)
        for name in ("k", "v"):
            plgpu.copy_gmem_to_smem(refs[name].at[b, kv, _own(j)], scratch[name], barrier)
        plgpu.barrier_wait(barrier)

        def tile_of(t):
            return first + lax.rem(t, last - first)

        def issue(t, slot):
            i = tile_of(t)
            n = kv * spec.groups + lax.div(t, last - first)
            ready = scratch["ready"].at[slot]
            plgpu.copy_gmem_to_smem(refs["q_ids"].at[row, i], scratch["q_ids"].at[slot], ready)
            plgpu.copy_gmem_to_smem(refs["sums"].at[b, n, i], scratch["sums"].at[slot], ready)
            for name in ("q", "g"):
                source = refs[name].at[b, n, _own(i)]
                plgpu.copy_gmem_to_smem(source, scratch[name].at[slot], ready)

        def compute(dk, dv):
            ops.clear(dk, dv)

            def consume(t, slot, carry):
                plgpu.barrier_wait(scratch["ready"].at[slot])
                queries, g_tile = scratch["q"].at[slot], scratch["g"].at[slot]
                sums_tile = scratch["sums"].at[slot]
                whole = refs["whole"][row, tile_of(t), j]
                logits = ops.product([(scratch["k"], queries)]) * spec.scale_base2
                query_ids = scratch["q_ids"].at[slot]
                logits = common.masked(spec, ops, logits, whole, query_ids, scratch["k_ids"], 1)
                p = jnp.exp2(logits - ops.vector(sums_tile.at[0], 1))
                ops.mma(dv, p.astype(spec.dtype), g_tile)
                dp = ops.product([(scratch["v"], g_tile)])
                ds = p * (dp - ops.vector(sums_tile.at[1], 1))
                ops.mma(dk, ds.astype(spec.dtype), queries)
                return carry

            steps = (last - first) * spec.groups
            ring(ops, jnp.int32(0), steps, STAGES, issue, consume)
            ops.wait()
            return dk[...], dv[...]

        dk, dv = pl.run_scoped(compute, *[ops.accumulator(spec.width)] * 2)
        scratch["k"][...] = (dk * spec.scale).astype(spec.dtype)
        scratch["v"][...] = dv.astype(spec.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(scratch["k"], outs["dk"].at[b, kv, _own(j)])
        plgpu.copy_smem_to_gmem(scratch["v"], outs["dv"].at[b, kv, _own(j)])
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        "k": common.tile_buffer(spec),
        "v": common.tile_buffer(spec),
        "q": common.tile_buffer(spec, STAGES),
        "g": common.tile_buffer(spec, STAGES),
        "k_ids": common.ids_buffer(),
        "q_ids": common.ids_buffer(STAGES),
        "sums": plgpu.SMEM((STAGES, 2, TILE), jnp.float32),
        "own_barrier": plgpu.Barrier(num_arrivals=3),
        "ready": plgpu.Barrier(num_arrivals=4, num_barriers=STAGES),
    }
    operands = {
        "q": q, "k": k, "v": v, "g": g, "sums": sums, "q_ids": q_ids, "k_ids": k_ids,
        "span": k_span, "whole": whole,
    }  # fmt: skip
    grid = (spec.tiles[1], k.shape[1], k.shape[0])
    out_type = {"dk": struct(k.shape, spec.dtype), "dv": struct(v.shape, spec.dtype)}
    outs = common.call(spec, body, grid, ("j", "k", "b"), operands, out_type, scratch)
    return outs["dk"], outs["dv"]
