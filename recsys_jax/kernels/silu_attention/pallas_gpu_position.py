"""Gradient of the position table of SiLU attention on Hopper GPUs. See pallas_gpu_backward."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels import mosaic_gpu
from recsys_jax.kernels.silu_attention import pallas_gpu_common as common
from recsys_jax.kernels.silu_attention import pallas_gpu_tiles as tiles

TILE = mosaic_gpu.TILE


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
    operands = tiles.named(spec, prepared, table, toeplitz, **tensors)
    copies = tiles.copy_counter(operands, group)
    streamed = tiles.tensor_scratch(spec, operands, tuple(tensors), group)
    stages = common.fit_stages(spec, {}, streamed, extra=TILE * TILE * 4)
    streamed = tiles.tensor_scratch(spec, operands, tuple(tensors), group, (stages,))

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
            tile = tiles.Tile(
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
                total = total + tile.silu_gradient(parts, da)
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
    (parts,) = tiles.call(spec, body, (c, shares), ("d", "share"), operands, out_type, scratch)
    return _sum_diagonals(parts.sum(1), length)


def _sum_diagonals(tiles, length):
    """Toeplitz tiles [C, 64, 64] -> sums by distance [length], without scatter.

    Distances past the table's end belong to its last entry, as in `position_tiles`.
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
