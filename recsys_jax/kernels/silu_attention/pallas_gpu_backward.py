"""Backward kernels of SiLU attention on Hopper GPUs (Mosaic GPU). See pallas_gpu_common.

Three kernels, none of which writes to memory that another block writes, so results repeat bit for
bit: `row_gradients` owns a query tile (dq and the time table), `key_gradients` owns a key tile
(dk and dv), `pallas_gpu_position` owns a diagonal of tiles (the position table). All recompute the
map from q, k and the times: nothing of size N x N is kept by the forward pass.

With g_s, g_t, g_p the cotangents of the channels (specification section 5.4):
  dA = g_s v^T;  dS = M dA sig(S) (1 + S (1 - sig(S))) scale;  dq = dS k;  dk = dS^T q
  dv = A^T g_s + T^T g_t + P^T g_p
  dT = M sum_h g_t v^T, dP = M sum_h g_p v^T ('separate'), or both sum_h dS ('added').
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels import mosaic_gpu
from recsys_jax.kernels.silu_attention import pallas_gpu_common as common
from recsys_jax.kernels.silu_attention import pallas_gpu_tiles as tiles

TILE = mosaic_gpu.TILE


def row_gradients(spec, prepared, q, k, v, g_sem, g_time, table, toeplitz):
    """Gradients owned by query tiles.

    Args:
      q, k: [B, H, N, K] or None; v and cotangents: [B, H, N, D] (None where a channel is off).
      table: float32 [128] or None; toeplitz: float32 [C, 64, 64] or None.

    Returns:
      (dq or None, time table gradient float32 [128] or None).
    """
    ops = common.Ops(spec)
    separate_time = spec.time and not spec.added
    group = spec.group(max(spec.width_qk, spec.width_v))
    groups, c = spec.heads // group, spec.tiles
    operands = tiles.named(
        spec, prepared, table, toeplitz,
        q=q, k=k, v=v, g_sem=g_sem, g_time=g_time if separate_time else None,
    )  # fmt: skip
    copies = tiles.copy_counter(operands, group)
    own = tiles.tensor_scratch(spec, operands, ("q", "g_sem", "g_time"), group)
    streamed = tiles.tensor_scratch(spec, operands, ("k", "v"), group)
    stages = common.fit_stages(spec, own, streamed)
    streamed = tiles.tensor_scratch(spec, operands, ("k", "v"), group, (stages,))

    def body(refs, outs, scratch):
        outs = list(outs)
        dq_out = outs.pop(0) if spec.semantic else None
        dw_out = outs.pop(0) if spec.time else None
        i = c - 1 - lax.axis_index("i")
        g, b = lax.axis_index("g"), lax.axis_index("b")
        rows = pl.ds(i * TILE, TILE)
        first, last = refs["span"][b, i, 0], refs["span"][b, i, 1]
        barrier = scratch["own_barrier"]
        plgpu.copy_gmem_to_smem(refs["meta"].at[b, i], scratch["own_meta"], barrier)
        for name in own:
            common.copy_in(refs[name], g, group, b, rows, scratch[name], barrier)
        plgpu.barrier_wait(barrier)

        def issue(j, slot):
            ready = scratch["ready"].at[slot]
            source = pl.ds(j * TILE, TILE)
            plgpu.copy_gmem_to_smem(refs["meta"].at[b, j], scratch["meta"].at[slot], ready)
            for name in streamed:
                common.copy_in(refs[name], g, group, b, source, scratch[name].at[slot], ready)

        buckets = common.BucketSums(ops) if spec.time else None

        def compute(*dq):
            ops.clear(*dq)

            def consume(j, slot, carry):
                plgpu.barrier_wait(scratch["ready"].at[slot])
                keys = scratch["k"].at[slot] if spec.semantic else None
                values = scratch["v"].at[slot]
                tile = tiles.Tile(
                    ops, spec, refs, scratch["own_meta"], scratch["meta"].at[slot], b, i, j, 0
                )
                if spec.added:
                    tile.load_time()
                    tile.load_position()
                dt_sum = None
                for h in range(group if spec.semantic else 0):
                    parts = tile.activate(ops.product([(scratch["q"].at[h], keys.at[h])]))
                    da = ops.product([(scratch["g_sem"].at[h], values.at[h])])
                    ds = tile.silu_gradient(parts, da)
                    ops.mma(dq[h], ds.astype(spec.dtype), keys.at[h])
                    if spec.added:
                        dt_sum = ds if dt_sum is None else dt_sum + ds
                if separate_time:
                    pairs = [(scratch["g_time"].at[h], values.at[h]) for h in range(group)]
                    dt_sum = jnp.where(tile.mask, ops.product(pairs), 0.0)
                if spec.time:
                    return buckets.add(carry, dt_sum, tile.dt, tile.low, tile.high, refs["theta"])
                return carry

            start = buckets.start() if spec.time else None
            dw = mosaic_gpu.ring(ops, first, last, stages, issue, consume, start)
            ops.wait()
            return [acc[...] for acc in dq], dw

        count = group if spec.semantic else 0
        results, dw = pl.run_scoped(compute, *[ops.accumulator(spec.width_qk)] * count)
        for h in range(count):
            # q is no longer needed; its shared memory carries the result out.
            scratch["q"].at[h][...] = results[h].astype(spec.dtype)
        for row in range(buckets.rows if spec.time else 0):
            dw_out.at[b, g, i, row][...] = dw[row]
        plgpu.commit_smem()
        if spec.semantic:
            common.copy_out(scratch["q"], dq_out, g, group, b, rows)
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        **own, **streamed,
        'own_meta': plgpu.SMEM((3, TILE), jnp.int32),
        'meta': plgpu.SMEM((stages, 3, TILE), jnp.int32),
        'own_barrier': plgpu.Barrier(num_arrivals=1 + copies(own)),
        'ready': plgpu.Barrier(num_arrivals=1 + copies(streamed), num_barriers=stages),
    }  # fmt: skip
    out_type = []
    if spec.semantic:
        out_type.append(mosaic_gpu.struct(q.shape, spec.dtype))
    if spec.time:
        lanes = (common.BucketSums.rows, common.THREADS)
        out_type.append(mosaic_gpu.struct((spec.batch, groups, c, *lanes), jnp.float32))
    outs = list(
        tiles.call(
            spec, body, (c, groups, spec.batch), ("i", "g", "b"), operands, out_type, scratch
        )
    )
    dq = outs.pop(0) if spec.semantic else None
    return dq, common.BucketSums.by_bucket(outs.pop(0)) if spec.time else None


def key_gradients(spec, prepared, q, k, v, g_sem, g_time, g_pos, table, toeplitz):
    """Gradients owned by key tiles: (dk [B, H, N, K] or None, dv [B, H, N, D]).

    Arguments as in `row_gradients`; the tiles of `toeplitz` must be transposed.
    """
    ops = common.Ops(spec)
    separate = not spec.added
    group = spec.group(spec.width_v + (spec.width_qk if spec.semantic else 0))
    groups, c = spec.heads // group, spec.tiles
    operands = tiles.named(
        spec, prepared, table, toeplitz, q=q, k=k, v=v, g_sem=g_sem,
        g_time=g_time if separate else None, g_pos=g_pos if separate else None,
    )  # fmt: skip
    moving = ("q", "g_sem", "g_time", "g_pos")
    copies = tiles.copy_counter(operands, group)
    own = tiles.tensor_scratch(spec, operands, ("k", "v"), group)
    streamed = tiles.tensor_scratch(spec, operands, moving, group)
    stages = common.fit_stages(spec, own, streamed)
    streamed = tiles.tensor_scratch(spec, operands, moving, group, (stages,))

    def body(refs, outs, scratch):
        j = lax.axis_index("j")  # Early tiles are seen by the most queries and come first.
        g, b = lax.axis_index("g"), lax.axis_index("b")
        rows = pl.ds(j * TILE, TILE)
        first, last = refs["span"][b, j, 2], refs["span"][b, j, 3]
        barrier = scratch["own_barrier"]
        plgpu.copy_gmem_to_smem(refs["meta"].at[b, j], scratch["own_meta"], barrier)
        for name in own:
            common.copy_in(refs[name], g, group, b, rows, scratch[name], barrier)
        plgpu.barrier_wait(barrier)

        def issue(i, slot):
            ready = scratch["ready"].at[slot]
            source = pl.ds(i * TILE, TILE)
            plgpu.copy_gmem_to_smem(refs["meta"].at[b, i], scratch["meta"].at[slot], ready)
            for name in streamed:
                common.copy_in(refs[name], g, group, b, source, scratch[name].at[slot], ready)

        def compute(*accumulators):
            ops.clear(*accumulators)
            dv, dk = accumulators[:group], accumulators[group:]

            def consume(i, slot, carry):
                plgpu.barrier_wait(scratch["ready"].at[slot])
                tile = tiles.Tile(
                    ops, spec, refs, scratch["meta"].at[slot], scratch["own_meta"], b, i, j, 1
                )
                moved = {name: scratch[name].at[slot] for name in streamed}
                for load, name in ((tile.load_time, "g_time"), (tile.load_position, "g_pos")):
                    bias = load()
                    if separate and bias is not None:
                        bias = jnp.where(tile.mask, bias, 0.0).astype(spec.dtype)
                        for h in range(group):
                            ops.mma(dv[h], bias, moved[name].at[h])
                for h in range(group if spec.semantic else 0):
                    g_h = moved["g_sem"].at[h]
                    parts = tile.activate(ops.product([(scratch["k"].at[h], moved["q"].at[h])]))
                    ops.mma(dv[h], tile.silu(parts).astype(spec.dtype), g_h)
                    ds = tile.silu_gradient(parts, ops.product([(scratch["v"].at[h], g_h)]))
                    ops.mma(dk[h], ds.astype(spec.dtype), moved["q"].at[h])
                return carry

            mosaic_gpu.ring(ops, first, last, stages, issue, consume)
            ops.wait()
            return [acc[...] for acc in accumulators]

        kinds = [ops.accumulator(spec.width_v)] * group
        if spec.semantic:
            kinds += [ops.accumulator(spec.width_qk)] * group
        results = pl.run_scoped(compute, *kinds)
        for h in range(group):
            scratch["v"].at[h][...] = results[h].astype(spec.dtype)
            if spec.semantic:
                scratch["k"].at[h][...] = results[group + h].astype(spec.dtype)
        plgpu.commit_smem()
        common.copy_out(scratch["v"], outs[0], g, group, b, rows)
        if spec.semantic:
            common.copy_out(scratch["k"], outs[1], g, group, b, rows)
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        **own, **streamed,
        'own_meta': plgpu.SMEM((3, TILE), jnp.int32),
        'meta': plgpu.SMEM((stages, 3, TILE), jnp.int32),
        'own_barrier': plgpu.Barrier(num_arrivals=1 + copies(own)),
        'ready': plgpu.Barrier(num_arrivals=1 + copies(streamed), num_barriers=stages),
    }  # fmt: skip
    out_type = [mosaic_gpu.struct(v.shape, spec.dtype)]
    if spec.semantic:
        out_type.append(mosaic_gpu.struct(k.shape, spec.dtype))
    outs = tiles.call(
        spec, body, (c, groups, spec.batch), ("j", "g", "b"), operands, out_type, scratch
    )
    return (outs[1] if spec.semantic else None), outs[0]
