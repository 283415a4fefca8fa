"""Forward kernel of SiLU attention on Hopper GPUs (Mosaic GPU). See pallas_gpu_common."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels import mosaic_gpu
from recsys_jax.kernels.silu_attention import pallas_gpu_common as common

TILE = mosaic_gpu.TILE


def forward(spec: common.Spec, prepared, q, k, v, table, toeplitz):
    """Channels of the op on padded operands.

    Args:
      spec: static facts.
      prepared: pallas_gpu_prepare.Prepared.
      q, k: [B, H, N, K] or None; v: [B, H, N, D].
      table: float32 [128] time weights, or None. toeplitz: float32 [C, 64, 64], or None.

    Returns:
      List of [B, H, N, D] in the type of v: semantic, time, position, those that are on.
    """
    ops = common.Ops(spec)
    separate = not spec.added
    channels = [
        spec.semantic, spec.time and separate, spec.position and separate,
    ]  # fmt: skip
    outputs = sum(channels)
    group = spec.group(spec.width_v * max(outputs, 1))
    groups = spec.heads // group
    c = spec.tiles

    def body(*refs):
        refs = list(refs)
        q_gmem, k_gmem = (refs.pop(0), refs.pop(0)) if spec.semantic else (None, None)
        v_gmem, meta_gmem, span, buckets, theta = (refs.pop(0) for _ in range(5))
        table_ref = refs.pop(0) if spec.time else None
        toeplitz_ref = refs.pop(0) if spec.position else None
        out_gmem = [refs.pop(0) for _ in range(outputs)]
        scratch = dict(zip(names, refs, strict=True))
        # Late tiles have the most keys: start them first.
        i = c - 1 - lax.axis_index("i")
        g = lax.axis_index("g")
        b = lax.axis_index("b")
        first, last = span[b, i, 0], span[b, i, 1]
        own = pl.ds(i * TILE, TILE)

        common.load_tables(spec, {"theta": theta, "table": table_ref}, scratch)
        barrier = scratch["own_barrier"]
        plgpu.copy_gmem_to_smem(meta_gmem.at[b, i], scratch["own_meta"], barrier)
        if spec.semantic:
            common.copy_in(q_gmem, g, group, b, own, scratch["q"], barrier)
        plgpu.barrier_wait(barrier)

        def issue(j, slot):
            ready = scratch["ready"].at[slot]
            rows = pl.ds(j * TILE, TILE)
            plgpu.copy_gmem_to_smem(meta_gmem.at[b, j], scratch["meta"].at[slot], ready)
            common.copy_in(v_gmem, g, group, b, rows, scratch["v"].at[slot], ready)
            if spec.semantic:
                common.copy_in(k_gmem, g, group, b, rows, scratch["k"].at[slot], ready)

        def compute(*accumulators):
            ops.clear(*accumulators)
            accumulators = list(accumulators)
            sums = [[accumulators.pop(0) for _ in range(group)] if on else None for on in channels]

            def consume(j, slot, carry):
                plgpu.barrier_wait(scratch["ready"].at[slot])
                own_meta, meta = scratch["own_meta"], scratch["meta"].at[slot]
                mask = common.visible(ops, spec, own_meta.at[0], meta.at[0], i, j, 0)
                time = position = None
                if spec.time:
                    dt = common.time_difference(
                        ops.vector(own_meta.at[2], 0), ops.vector(meta.at[1], 1)
                    )
                    time = common.time_bias(
                        ops,
                        spec,
                        dt,
                        buckets[0, b, i, j],
                        buckets[1, b, i, j],
                        scratch["theta"],
                        scratch["table"],
                    )
                if spec.position:
                    position = ops.matrix(toeplitz_ref.at[i - j])
                bias = None
                if spec.added:
                    bias = sum(x for x in (time, position) if x is not None)
                weights = [
                    (out, jnp.where(mask, tile, 0.0).astype(spec.dtype))
                    for out, tile in zip(sums[1:], (time, position), strict=True)
                    if out is not None
                ]
                for h in range(group):
                    values = scratch["v"].at[slot, h]
                    if spec.semantic:
                        keys = scratch["k"].at[slot, h]
                        s = ops.product([(scratch["q"].at[h], keys)])
                        if bias is not None and not isinstance(bias, int):
                            s = s + bias
                        a = jnp.where(mask, common.silu(spec, *common.half_and_tanh(s)), 0.0)
                        ops.mma(sums[0][h], a.astype(spec.dtype), values)
                    for out, tile in weights:
                        ops.mma(out[h], tile, values)
                return carry

            mosaic_gpu.ring(ops, first, last, stages, issue, consume)
            ops.wait()
            return [acc[...] for channel in sums if channel is not None for acc in channel]

        results = pl.run_scoped(
            compute, *[ops.accumulator(spec.width_v) for _ in range(outputs * group)]
        )
        for n, result in enumerate(results):
            channel, h = divmod(n, group)
            scratch["out"][...] = result.astype(spec.dtype)
            plgpu.commit_smem()
            target = out_gmem[channel].at[b, g * group + h, own]
            plgpu.copy_smem_to_gmem(scratch["out"], target)
            plgpu.wait_smem_to_gmem(0)

    shape_v = (group, TILE, spec.width_v)
    shape_q = (group, TILE, spec.width_qk)
    stages = common.fit_stages(
        spec, {'q': plgpu.SMEM(shape_q, spec.dtype)},
        {'k': plgpu.SMEM(shape_q, spec.dtype), 'v': plgpu.SMEM(shape_v, spec.dtype)},
        extra=TILE * spec.width_v * 2,
    )  # fmt: skip
    queries, moving = ([q], [k, v]) if spec.semantic else ([], [v])
    scratch = common.table_scratch(spec) | {
        "own_meta": plgpu.SMEM((3, TILE), jnp.int32),
        "meta": plgpu.SMEM((stages, 3, TILE), jnp.int32),
        "v": mosaic_gpu.swizzled((stages, *shape_v), spec.dtype),
        "out": mosaic_gpu.swizzled(shape_v[1:], spec.dtype),
        "own_barrier": plgpu.Barrier(num_arrivals=1 + common.count_copies(queries, group)),
        "ready": plgpu.Barrier(
            num_arrivals=1 + common.count_copies(moving, group), num_barriers=stages
        ),
    }
    operands = [v, prepared.meta, prepared.span, prepared.buckets, prepared.theta]
    if spec.semantic:
        scratch["q"] = mosaic_gpu.swizzled(shape_q, spec.dtype)
        scratch["k"] = mosaic_gpu.swizzled((stages, *shape_q), spec.dtype)
        operands = [q, k, *operands]
    operands += [table] if spec.time else []
    operands += [toeplitz] if spec.position else []
    names = list(scratch)
    out_type = [mosaic_gpu.struct(v.shape, spec.dtype)] * outputs
    return mosaic_gpu.launch(
        spec.interpret, body, (c, groups, spec.batch), ('i', 'g', 'b'), out_type,
        list(scratch.values()), *operands,
    )  # fmt: skip
