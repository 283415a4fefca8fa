"""Backward kernels of SiLU attention on Hopper GPUs (Mosaic GPU). See pallas_gpu_common.

Three kernels, none of which writes to memory that another block writes, so results repeat bit for
bit: `row_gradients` owns a query tile (dq and the time table), `key_gradients` owns a key tile
(dk and dv), `position_gradient` owns a diagonal of tiles (the position table). All recompute the
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

TILE = mosaic_gpu.TILE


class _Tile:
    """Mask and bias tiles of query tile i and key tile j; queries run along `query_axis`."""

    def __init__(self, ops, spec, refs, query_meta, key_meta, b, i, j, query_axis):
        key_axis = 1 - query_axis
        self.mask = common.visible(ops, spec, query_meta.at[0], key_meta.at[0], i, j, query_axis)
        self.dt = self.time = self.position = self.bias = None
        if spec.time:
            self.dt = common.time_difference(
                ops.vector(query_meta.at[2], query_axis), ops.vector(key_meta.at[1], key_axis)
            )
            self.low, self.high = refs["buckets"][0, b, i, j], refs["buckets"][1, b, i, j]
        self._ops, self._refs, self._spec, self._delta = ops, refs, spec, i - j

    def load_time(self):
        if self._spec.time:
            refs = self._refs
            self.time = common.time_bias(
                self._ops,
                self._spec,
                self.dt,
                self.low,
                self.high,
                refs["theta"],
                refs["table"],
            )
        return self.time

    def load_position(self):
        if self._spec.position:
            self.position = self._ops.matrix(self._refs["toeplitz"].at[self._delta])
        return self.position

    def activate(self, s):
        """Pre-activation (s, plus the biases in 'added' mode) -> what SiLU is made of."""
        if self._spec.added:
            for bias in (self.time, self.position):
                s = s if bias is None else s + bias
        return common.half_and_tanh(s)

    def silu(self, parts):
        return jnp.where(self.mask, common.silu(self._spec, *parts), 0.0)

    def slope(self, parts):
        """Derivative of the map by the pre-activation."""
        return jnp.where(self.mask, common.silu_gradient(self._spec, *parts), 0.0)


def _named(spec, prepared, table, toeplitz, **tensors):
    """Operands by name, in a fixed order, without those that are off."""
    operands = {name: x for name, x in tensors.items() if x is not None}
    operands |= {
        'meta': prepared.meta, 'span': prepared.span, 'buckets': prepared.buckets,
        'theta': prepared.theta,
    }  # fmt: skip
    if spec.time:
        operands["table"] = table
    if spec.position:
        operands["toeplitz"] = toeplitz
    return operands


def _tensor_scratch(spec, operands, names, group, lead=()):
    """Shared memory for [group, 64, width] slices of the named tensors."""
    return {
        name: mosaic_gpu.swizzled((*lead, group, TILE, operands[name].shape[-1]), spec.dtype)
        for name in names
        if name in operands
    }


def _copy_counter(operands, group):
    return lambda names: common.count_copies([operands[name] for name in names], group)


def _call(spec, body, grid, names, operands, out_type, scratch):
    """Launch `body(refs, outputs, scratch)` with dictionaries instead of positions."""

    scratch = common.table_scratch(spec) | scratch

    def flat(*refs):
        refs = list(refs)
        ins = dict(zip(operands, refs, strict=False))
        outs = refs[len(operands) : len(operands) + len(out_type)]
        work = dict(zip(scratch, refs[len(operands) + len(out_type) :], strict=True))
        common.load_tables(spec, ins, work)
        if spec.time:  # From here on the kernel reads the shared-memory copies.
            ins |= {"theta": work["theta"], "table": work["table"]}
        body(ins, outs, work)

    return mosaic_gpu.launch(
        spec.interpret, flat, grid, names, out_type, list(scratch.values()), *operands.values()
    )


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
    operands = _named(
        spec, prepared, table, toeplitz,
        q=q, k=k, v=v, g_sem=g_sem, g_time=g_time if separate_time else None,
    )  # fmt: skip
    copies = _copy_counter(operands, group)
    own = _tensor_scratch(spec, operands, ("q", "g_sem", "g_time"), group)
    streamed = _tensor_scratch(spec, operands, ("k", "v"), group)
    stages = common.fit_stages(spec, own, streamed)
    streamed = _tensor_scratch(spec, operands, ("k", "v"), group, (stages,))

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
                tile = _Tile(
                    ops, spec, refs, scratch["own_meta"], scratch["meta"].at[slot], b, i, j, 0
                )
                if spec.added:
                    tile.load_time()
                    tile.load_position()
                dt_sum = None
                for h in range(group if spec.semantic else 0):
                    parts = tile.activate(ops.product([(scratch["q"].at[h], keys.at[h])]))
                    da = ops.product([(scratch["g_sem"].at[h], values.at[h])])
                    ds = tile.slope(parts) * da
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
        _call(spec, body, (c, groups, spec.batch), ("i", "g", "b"), operands, out_type, scratch)
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
    operands = _named(
        spec, prepared, table, toeplitz, q=q, k=k, v=v, g_sem=g_sem,
        g_time=g_time if separate else None, g_pos=g_pos if separate else None,
    )  # fmt: skip
    moving = ("q", "g_sem", "g_time", "g_pos")
    copies = _copy_counter(operands, group)
    own = _tensor_scratch(spec, operands, ("k", "v"), group)
    streamed = _tensor_scratch(spec, operands, moving, group)
    stages = common.fit_stages(spec, own, streamed)
    streamed = _tensor_scratch(spec, operands, moving, group, (stages,))

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
                tile = _Tile(
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
                    slope = tile.slope(parts)
                    ds = slope * ops.product([(scratch["v"].at[h], g_h)])
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
    outs = _call(spec, body, (c, groups, spec.batch), ("j", "g", "b"), operands, out_type, scratch)
    return (outs[1] if spec.semantic else None), outs[0]


def position_gradient(spec, prepared, q, k, v, g_sem, g_pos, table, toeplitz, length):
    """Gradient of the position table: float32 [length], for packed rows or 'added' bias.

    A block owns tile diagonal i - j = d and a share of the batch; it adds the masked tiles up in
    registers, so only [C, shares, 64, 64] numbers are written. Their diagonals are summed here.
    """
    ops = common.Ops(spec)
    c = spec.tiles
    shares = max(1, min(spec.batch, -(-264 // c)))  # About two blocks per multiprocessor.
    while spec.batch % shares:
        shares -= 1
    per_share = spec.batch // shares
    if spec.added:
        tensors = {"q": q, "k": k, "v": v, "g_sem": g_sem}
        group = spec.group(spec.width_qk + spec.width_v)
    else:
        tensors = {"v": v, "g_pos": g_pos}
        group = spec.group(spec.width_v)
    groups = spec.heads // group
    operands = _named(spec, prepared, table, toeplitz, **tensors)
    copies = _copy_counter(operands, group)
    streamed = _tensor_scratch(spec, operands, tuple(tensors), group)
    stages = common.fit_stages(spec, {}, streamed, extra=TILE * TILE * 4)
    streamed = _tensor_scratch(spec, operands, tuple(tensors), group, (stages,))

    def body(refs, outs, scratch):
        d, share = lax.axis_index("d"), lax.axis_index("share")
        diagonal = c - d  # Tiles on this diagonal.

        def place(t):
            """Step -> (sequence, query tile, head group)."""
            g = lax.rem(t, jnp.int32(groups))
            rest = lax.div(t, jnp.int32(groups))
            return share * per_share + lax.div(rest, diagonal), d + lax.rem(rest, diagonal), g

        def issue(t, slot):
            b, i, g = place(t)
            ready = scratch["ready"].at[slot]
            for name, tile in (("query_meta", i), ("key_meta", i - d)):
                plgpu.copy_gmem_to_smem(refs["meta"].at[b, tile], scratch[name].at[slot], ready)
            for name in streamed:
                tile = i - d if name in ("k", "v") else i
                source = pl.ds(tile * TILE, TILE)
                common.copy_in(refs[name], g, group, b, source, scratch[name].at[slot], ready)

        def consume(t, slot, total):
            plgpu.barrier_wait(scratch["ready"].at[slot])
            b, i, _ = place(t)
            moved = {name: scratch[name].at[slot] for name in streamed}
            tile = _Tile(
                ops, spec, refs, scratch['query_meta'].at[slot], scratch['key_meta'].at[slot],
                b, i, i - d, 0,
            )  # fmt: skip
            if not spec.added:
                pairs = [(moved["g_pos"].at[h], moved["v"].at[h]) for h in range(group)]
                return total + jnp.where(tile.mask, ops.product(pairs), 0.0)
            tile.load_time()
            tile.load_position()
            for h in range(group):
                parts = tile.activate(ops.product([(moved["q"].at[h], moved["k"].at[h])]))
                da = ops.product([(moved["g_sem"].at[h], moved["v"].at[h])])
                total = total + tile.slope(parts) * da
            return total

        steps = per_share * groups * diagonal
        total = mosaic_gpu.ring(
            ops, jnp.int32(0), steps, stages, issue, consume, ops.full(jnp.float32(0))
        )
        scratch["out"][...] = total
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(scratch["out"], outs[0].at[d, share])
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        **streamed,
        "query_meta": plgpu.SMEM((stages, 3, TILE), jnp.int32),
        "key_meta": plgpu.SMEM((stages, 3, TILE), jnp.int32),
        "out": plgpu.SMEM((TILE, TILE), jnp.float32),
        "ready": plgpu.Barrier(num_arrivals=2 + copies(streamed), num_barriers=stages),
    }
    out_type = [mosaic_gpu.struct((c, shares, TILE, TILE), jnp.float32)]
    (parts,) = _call(spec, body, (c, shares), ("d", "share"), operands, out_type, scratch)
    return _sum_diagonals(parts.sum(1), length)


def _sum_diagonals(tiles, length):
    """Toeplitz tiles [C, 64, 64] -> sums by distance [length], without scatter.

    Distances past the table's end belong to its last entry (as in `common.position_tiles`).
    """
    c = tiles.shape[0]
    # Skew: row r shifted by r makes the diagonals columns; column x is distance 63 - x.
    wide = jnp.pad(tiles[:, ::-1], ((0, 0), (0, 0), (0, TILE)))
    skew = wide.reshape(c, -1)[:, : TILE * (2 * TILE - 1)].reshape(c, TILE, 2 * TILE - 1).sum(1)
    # Row R = 63 - r of the flip starts R places later: column x = C + 63 - r, so r - C = 63 - x.
    by_distance = skew[:, ::-1]  # Entry y is distance y - 63 within the tile.
    lower, upper = by_distance[:, TILE - 1 :], by_distance[:, : TILE - 1]
    upper = jnp.pad(upper, ((0, 0), (1, 0)))  # Distance -64..-1 of tile d: 0..63 of tile d - 1.
    sums = (lower + jnp.pad(upper[1:], ((0, 1), (0, 0)))).reshape(-1)
    if sums.shape[0] <= length:
        return jnp.pad(sums, (0, length - sums.shape[0]))
    return sums[:length].at[-1].add(sums[length:].sum())
