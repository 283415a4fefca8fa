"""Backward kernels of segment attention with warp specialisation. See pallas_gpu_wide.

Status: run on an H100 against the float32 definition; speed in docs/kernels.md.

One kernel owns 128 queries of a head and sums dq, the other 128 keys of a key-value head and sums
dk and dv over all query heads that share it. Both form the probabilities anew from the log-sums. No
block adds into memory of another, so results repeat bit for bit.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels.segment_attention import pallas_gpu_wide as wide
from pangu_jax.kernels.segment_attention.pallas_gpu_wide import MEMORY, ROWS, TALL, struct

_KINDS = {"order": (), "segments": ("segments",), "positions": ("segments", "positions")}
_NAMES = ("q_segments", "k_segments", "q_positions", "k_positions")


def query_gradient(spec, ids, q, k, v, g, log_sum, delta):
    """dq like q.

    Args:
      g: cotangent of the output, like q. log_sum, delta: float32 [B, N, T], log2 of the sum of the
        exponentials and the sum of g * out over a row. Others as in `pallas_gpu_wide_forward`.

    Barriers: for every step, k_ready and v_ready of its slot are waited for once by each compute
    warpgroup and k_free and v_free arrived at once: v when its product is done, k in the next step
    or after the last.
    """
    ops, config = wide.Ops(spec), spec.config
    tiles, block, stages = spec.lengths[0] // TALL, config.dq_block_k, config.dq_stages
    ids = dict(zip(_NAMES, ids, strict=True))
    span = wide.spans(tuple(ids.values()), spec.lengths, (TALL, block), spec.window, 2)

    def body(place, warpgroup, refs, outs, scratch):
        b, n = place["b"], place["n"]
        i = tiles - 1 - place["i"]
        row = 0 if spec.shared_ids else b
        first, whole_first, whole_last, last = (refs["span"][row, i, m] for m in range(4))

        @pl.when(warpgroup == MEMORY)
        def _copy():
            ops.registers(config.memory_registers, "decrease")
            kv = lax.div(n, jnp.int32(spec.groups))

            def issue(name, t, slot):
                source = refs[name].at[b, pl.ds((first + t) * block, block), kv]
                ready = scratch[name + "_ready"].at[slot]
                plgpu.copy_gmem_to_smem(source, scratch[name].at[slot], ready)

            wide.fill(last - first, stages, ("k", "v"), scratch, issue)

        @pl.when(warpgroup != MEMORY)
        def _compute():
            ops.registers(config.compute_registers, "increase")
            start = i * TALL + warpgroup * ROWS
            own = pl.ds(start, ROWS)
            for name in ("q", "g"):
                ready = scratch["own_ready"].at[warpgroup]
                plgpu.copy_gmem_to_smem(
                    refs[name].at[b, own, n], scratch[name].at[warpgroup], ready
                )
            queries, cotangents = scratch["q"].at[warpgroup], scratch["g"].at[warpgroup]
            shape = (ROWS, block)
            row_sum, row_delta = (ops.rows(refs[x].at[b, n, own]) for x in ("log_sum", "delta"))
            of_queries = [ops.rows(refs[f"q_{x}"].at[row, own]) for x in _KINDS[spec.mask]]
            plgpu.barrier_wait(scratch["own_ready"].at[warpgroup])

            def masked(logits, j):
                def pick(side, kind):
                    if side == 0:
                        return of_queries[kind]
                    keys = refs["k_" + _KINDS[spec.mask][kind]].at[row, pl.ds(j * block, block)]
                    return ops.columns(keys)

                see = wide.visible(spec, ops, pick, (start, j * block), shape, 0)
                return jnp.where(see, logits, -jnp.inf)

            def step(j, totals, mask):
                slot = lax.rem(j - first, jnp.int32(stages))
                keys, values = scratch["k"].at[slot], scratch["v"].at[slot]
                plgpu.barrier_wait(scratch["k_ready"].at[slot])

                def wait_values():
                    plgpu.barrier_wait(scratch["v_ready"].at[slot])

                def weights(logits):
                    logits = mask(logits, j) * spec.scale_base2
                    p = jnp.exp2(logits - ops.spread(row_sum, shape))
                    if not spec.interpret:
                        p = lax.optimization_barrier(p)

                    # The product of the former step was done before this one's logits. The branch
                    # also keeps ptxas from waiting for the second product before the exponentials.
                    @pl.when(j > first)
                    def _release():
                        former = lax.rem(j - first + stages - 1, jnp.int32(stages))
                        plgpu.barrier_arrive(scratch["k_free"].at[former])

                    return p

                def gradient(p, dp):
                    plgpu.barrier_arrive(scratch["v_free"].at[slot])
                    return p * (dp - ops.spread(row_delta, shape))

                ds = ops.two_products(
                    (queries, keys), (cotangents, values), wait_values, weights, gradient, 0
                )
                return ops.add(totals, 0, ds.astype(spec.dtype), keys)

            def compute(totals):
                runs = _runs(first, whole_first, whole_last, last)
                for begin, end, mask in zip(*runs, (masked, _unmasked, masked), strict=True):
                    totals = lax.fori_loop(
                        begin, end, lambda j, totals, mask=mask: step(j, totals, mask), totals
                    )
                return totals

            (dq,) = ops.accumulate(1, compute)
            slot = lax.rem(last - 1 - first, jnp.int32(stages))
            plgpu.barrier_arrive(scratch["k_free"].at[slot])
            queries[...] = (dq * spec.scale).astype(spec.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(queries, outs["dq"].at[b, own, n])
            plgpu.wait_smem_to_gmem(0)

    scratch = {
        "q": wide.tile_buffer(spec, 2, ROWS),
        "g": wide.tile_buffer(spec, 2, ROWS),
        "k": wide.tile_buffer(spec, stages, block),
        "v": wide.tile_buffer(spec, stages, block),
        "own_ready": plgpu.Barrier(num_arrivals=2, num_barriers=2),
        **_ring_barriers(("k", "v"), stages, 1),
    }
    operands = {"q": q, "k": k, "v": v, "g": g, "log_sum": log_sum, "delta": delta, "span": span}
    operands |= {name: x for name, x in ids.items() if x is not None}
    counts = tiles, q.shape[2], q.shape[0]
    out_type = {"dq": struct(q.shape, spec.dtype)}
    return wide.launch(spec, body, counts, operands, out_type, scratch)["dq"]


def key_gradients(spec, ids, q, k, v, g, log_sum, delta):
    """(dk, dv) like k; arguments as in `query_gradient`. Here keys run along a tile's rows.

    Barriers: for every step, q_ready and g_ready of its slot (two copies each) are waited for once
    by each compute warpgroup and q_free and g_free arrived at once: g when the product for dv is
    done, q in the next step or after the last.
    """
    ops, config = wide.Ops(spec), spec.config
    tiles, block, stages = spec.lengths[1] // TALL, config.dkv_block_q, config.dkv_stages
    ids = dict(zip(_NAMES, ids, strict=True))
    span = wide.spans(tuple(ids.values()), spec.lengths, (block, TALL), spec.window, 1)

    def body(place, warpgroup, refs, outs, scratch):
        b, kv = place["b"], place["n"]
        j = place["i"]  # Early tiles are seen by the most queries and come first.
        row = 0 if spec.shared_ids else b
        first, whole_first, whole_last, last = (refs["span"][row, j, m] for m in range(4))
        count = last - first

        @pl.when(warpgroup == MEMORY)
        def _copy():
            ops.registers(config.memory_registers, "decrease")

            def issue(name, t, slot):
                n = kv * spec.groups + lax.div(t, count)
                rows = pl.ds((first + lax.rem(t, count)) * block, block)
                ready = scratch[name + "_ready"].at[slot]
                plgpu.copy_gmem_to_smem(refs[name].at[b, rows, n], scratch[name].at[slot], ready)
                other = {"q": "log_sum", "g": "delta"}[name]
                plgpu.copy_gmem_to_smem(refs[other].at[b, n, rows], scratch[other].at[slot], ready)

            wide.fill(count * spec.groups, stages, ("q", "g"), scratch, issue)

        @pl.when(warpgroup != MEMORY)
        def _compute():
            ops.registers(config.compute_registers, "increase")
            start = j * TALL + warpgroup * ROWS
            own = pl.ds(start, ROWS)
            for name in ("k", "v"):
                ready = scratch["own_ready"].at[warpgroup]
                plgpu.copy_gmem_to_smem(
                    refs[name].at[b, own, kv], scratch[name].at[warpgroup], ready
                )
            keys, values = scratch["k"].at[warpgroup], scratch["v"].at[warpgroup]
            shape = (ROWS, block)
            of_keys = [ops.rows(refs[f"k_{x}"].at[row, own]) for x in _KINDS[spec.mask]]
            plgpu.barrier_wait(scratch["own_ready"].at[warpgroup])

            def masked(logits, i):
                def pick(side, kind):
                    if side == 1:
                        return of_keys[kind]
                    rows = refs["q_" + _KINDS[spec.mask][kind]].at[row, pl.ds(i * block, block)]
                    return ops.columns(rows)

                see = wide.visible(spec, ops, pick, (i * block, start), shape, 1)
                return jnp.where(see, logits, -jnp.inf)

            def step(t, i, totals, mask):
                slot = lax.rem(t, jnp.int32(stages))
                queries, cotangents = scratch["q"].at[slot], scratch["g"].at[slot]
                plgpu.barrier_wait(scratch["q_ready"].at[slot])
                carried = [totals]

                def wait_cotangents():
                    plgpu.barrier_wait(scratch["g_ready"].at[slot])

                def weights(logits):
                    # The product for dk of the former step is done too.
                    @pl.when(t > 0)
                    def _release():
                        former = lax.rem(t + stages - 1, jnp.int32(stages))
                        plgpu.barrier_arrive(scratch["q_free"].at[former])

                    logits = mask(logits, i) * spec.scale_base2
                    sums = ops.spread(ops.columns(scratch["log_sum"].at[slot]), shape, 1)
                    p = jnp.exp2(logits - sums)
                    carried[0] = ops.add(carried[0], 1, p.astype(spec.dtype), cotangents)
                    return p

                def gradient(p, dp):
                    delta = ops.spread(ops.columns(scratch["delta"].at[slot]), shape, 1)
                    return p * (dp - delta)

                ds = ops.two_products(
                    (keys, queries), (values, cotangents), wait_cotangents, weights, gradient, 1
                )
                totals = ops.add(carried[0], 0, ds.astype(spec.dtype), queries)
                ops.wait(1)
                plgpu.barrier_arrive(scratch["g_free"].at[slot])
                return totals

            def of_head(m, totals):
                runs = _runs(first, whole_first, whole_last, last)
                for begin, end, mask in zip(*runs, (masked, _unmasked, masked), strict=True):

                    def at(i, totals, mask=mask):
                        return step(m * count + i - first, i, totals, mask)

                    totals = lax.fori_loop(begin, end, at, totals)
                return totals

            dk, dv = ops.accumulate(2, lambda totals: lax.fori_loop(
                0, spec.groups, of_head, totals
            ))  # fmt: skip
            slot = lax.rem(count * spec.groups - 1, jnp.int32(stages))
            plgpu.barrier_arrive(scratch["q_free"].at[slot])
            keys[...] = (dk * spec.scale).astype(spec.dtype)
            values[...] = dv.astype(spec.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(keys, outs["dk"].at[b, own, kv])
            plgpu.copy_smem_to_gmem(values, outs["dv"].at[b, own, kv])
            plgpu.wait_smem_to_gmem(0)

    scratch = {
        "k": wide.tile_buffer(spec, 2, ROWS),
        "v": wide.tile_buffer(spec, 2, ROWS),
        "q": wide.tile_buffer(spec, stages, block),
        "g": wide.tile_buffer(spec, stages, block),
        "log_sum": plgpu.SMEM((stages, block), jnp.float32),
        "delta": plgpu.SMEM((stages, block), jnp.float32),
        "own_ready": plgpu.Barrier(num_arrivals=2, num_barriers=2),
        **_ring_barriers(("q", "g"), stages, 2),
    }
    operands = {"q": q, "k": k, "v": v, "g": g, "log_sum": log_sum, "delta": delta, "span": span}
    operands |= {name: x for name, x in ids.items() if x is not None}
    counts = tiles, k.shape[2], k.shape[0]
    out_type = {"dk": struct(k.shape, spec.dtype), "dv": struct(v.shape, spec.dtype)}
    outs = wide.launch(spec, body, counts, operands, out_type, scratch)
    return outs["dk"], outs["dv"]


def _unmasked(logits, tile):
    del tile
    return logits


def _runs(first, whole_first, whole_last, last):
    """Begins and ends of the masked, the unmasked and the masked run of a tile's range."""
    return (first, whole_first, whole_last), (whole_first, whole_last, last)


def _ring_barriers(names, stages, copies):
    """`<name>_ready`, by that many copies per slot, and `<name>_free`, by both warpgroups."""
    barriers = {}
    for name in names:
        barriers[name + "_ready"] = plgpu.Barrier(num_arrivals=copies, num_barriers=stages)
        barriers[name + "_free"] = plgpu.Barrier(num_arrivals=2, num_barriers=stages)
    return barriers
