"""What the Mosaic GPU kernels of SiLU attention share: tiling and the bias tiles.

Everything works on square tiles of 64 queries by 64 keys (`pangu_jax.kernels.mosaic_gpu`, which
also says how interpret mode differs). A kernel owns 64 rows (or 64 keys) of one sequence for a
group of heads and walks over the tiles of the other axis that can hold a visible pair. Nothing of
size N x N ever leaves the registers.

Letters: B batch, N positions (padded to 64), H heads, G head groups, C tiles per sequence.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels import mosaic_gpu
from pangu_jax.kernels.mosaic_gpu import TILE
from recsys_jax.kernels.silu_attention.buckets import INCREMENT, bucket_thresholds

# int32 time differences reach at most bucket 71; 128 is the next multiple of a WGMMA row tile.
TABLE = 128
# Past so many buckets beside the first a gather takes fewer instructions than selections.
_FEW_BUCKETS = 8
THREADS = 128  # Of a warpgroup.
# One and a half per multiprocessor of a Hopper GPU: blocks near the end of a sequence do more.
_WANTED_BLOCKS = 198
_WARP = 32
_PER_THREAD = plgpu.Layout.WG_STRIDED((THREADS,), vec_size=1)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Static facts of one call, shared by its forward and backward kernels.

    `lookup` is how a tile of time weights is made: 'select' runs through the buckets that the
    tile can hold, 'gather' reads shared memory at computed addresses, 'auto' chooses for every tile
    (see `time_bias`). `packed` says that a row can hold several segments.
    """

    added: bool
    semantic: bool
    time: bool
    position: bool
    scale: float
    dtype: np.dtype
    batch: int
    tiles: int
    heads: int
    width_qk: int
    width_v: int
    num_buckets: int = 0
    stages: int = 2
    lookup: str = "auto"
    packed: bool = True
    interpret: bool = False

    def group(self, columns_per_head: int, limit: int = 128) -> int:
        """Heads of a block: they share the bias tile.

        As many as have room for their accumulators (`columns_per_head` fp32 columns each, `limit`
        in all), unless that leaves multiprocessors without work.
        """
        fits = [g for g in range(1, self.heads + 1) if self.heads % g == 0]
        fits = [g for g in fits if g * columns_per_head <= limit]
        tiles = self.batch * self.tiles * self.heads
        busy = [g for g in fits if tiles // g >= _WANTED_BLOCKS]
        return max(busy, default=1)


def fit_stages(spec, own, streamed, extra=0):
    """Ring slots that fit the shared memory of a block (227 KiB on Hopper, less a margin)."""

    def size(buffers):
        return sum(int(np.prod(b.shape)) * 2 for b in buffers.values())  # 16-bit tensors.

    room = 216 * 1024 - extra - size(own)
    stages = min(spec.stages, room // max(size(streamed), 1))
    if stages < 1:
        raise NotImplementedError(
            f"head widths {spec.width_qk} and {spec.width_v} exceed the shared memory of a block"
        )
    return stages


def _gather(ref, index):
    """Read shared memory at one address per tile element (below the level Pallas offers)."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, memref

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), plgpu.Layout.WGMMA),
        return_type=plgpu.ShapeDtypeStruct((TILE, TILE), ref.dtype, layout=plgpu.Layout.WGMMA),
    )
    def read(ctx, table, indices):
        del ctx

        def one(value, position):
            del position
            return memref.load(table, [arith.index_cast(ir.IndexType.get(), value)])

        signed = True if jnp.issubdtype(ref.dtype, jnp.integer) else None
        return indices.foreach(one, create_array=True, is_signed=signed)

    return read(ref, index)


def _warp_sums(tile):
    from jax.experimental.mosaic import gpu as mgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, vector

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA,),
        return_type=plgpu.ShapeDtypeStruct((THREADS,), jnp.float32, layout=_PER_THREAD),
    )
    def add_up(ctx, entries):
        del ctx
        parts = [None] * 4  # Four chains of additions, so that none waits for the last.
        for n, register in enumerate(entries.registers.flat):
            at = n % len(parts)
            parts[at] = register if parts[at] is None else arith.addf(parts[at], register)
        whole = arith.addf(arith.addf(parts[0], parts[1]), arith.addf(parts[2], parts[3]))
        [width] = ir.VectorType(whole.type).shape
        total = None
        for n in range(width):
            static = ir.DenseI64ArrayAttr.get([n])
            entry = vector.extract(whole, dynamic_position=[], static_position=static)
            total = entry if total is None else arith.addf(total, entry)
        for distance in (1, 2, 4, 8, 16):
            total = arith.addf(total, mgpu.utils.shfl_bfly(total, distance))
        return mgpu.FragmentedArray(
            _registers=np.asarray(
                [vector.broadcast(ir.VectorType.get((1,), total.type), total)], dtype=object
            ),
            _layout=mgpu.WGStridedFragLayout((THREADS,), vec_size=1),
            _is_signed=None,
        )

    return add_up(tile)


class Ops(mosaic_gpu.Ops):
    """Those of the ground floor, and the gather."""

    def __init__(self, spec: Spec):
        super().__init__(spec.interpret)

    def warp_sums(self, tile):
        """float32 [128], an entry per thread: the sum of its warp's part of a register tile."""
        if self.interpret:  # The first warp has it all.
            return jnp.where(jnp.arange(THREADS) < _WARP, tile.sum(), 0.0)
        return _warp_sums(tile)

    def per_thread(self, value):
        """float32 [128], an entry per thread."""
        return self.cast(jnp.full(THREADS, value, jnp.float32), _PER_THREAD)

    def lane(self):
        """int32 [128]: place of a thread in its warp."""
        if self.interpret:
            return jnp.arange(THREADS) % _WARP
        thread = plgpu.broadcasted_iota(jnp.int32, (THREADS,), 0, layout=_PER_THREAD)
        return lax.rem(thread, jnp.int32(_WARP))

    def gather(self, ref, index):
        """Register tile ref[index] for a [128] shared-memory table."""
        if self.interpret:
            return jnp.take(ref[...], index, mode="clip")
        return _gather(ref, index)


def half_and_tanh(s):
    """h = s / 2 and tanh(h): sigmoid(s) = (1 + tanh(h)) / 2 costs one approximate instruction.

    An exponential and a division would cost several times as much. The relative error of the tanh,
    2^-11, makes at most |s| / 4096 in silu(s).
    """
    half = 0.5 * s
    return half, jnp.tanh(half)


def silu(spec, half, tanh):
    """scale * s * sigmoid(s)."""
    return (half + half * tanh) * spec.scale


def silu_gradient(spec, half, tanh):
    """scale * sig * (1 + s * (1 - sig))."""
    return (0.5 * spec.scale + (0.5 * spec.scale) * tanh) * (1.0 + half - half * tanh)


def visible(ops, spec, query_segment, key_segment, i, j, query_axis):
    """Boolean tile: same nonzero segment and key not after query.

    Query tile `i` runs along `query_axis` of the tile, key tile `j` along the other. The segments
    (references) are not looked at where a row holds only one: there v and the cotangents are zero
    at padding, and so is whatever its rows and columns of the map are multiplied with.
    """
    causal = ops.iota(query_axis) + (i - j) * TILE >= ops.iota(1 - query_axis)
    if not spec.packed:
        return causal
    query_segment = ops.vector(query_segment, query_axis)
    key_segment = ops.vector(key_segment, 1 - query_axis)
    return (query_segment == key_segment) & (query_segment > 0) & causal


def time_difference(query_times, key_times):
    """|query - key|, where the largest int32 (the end mark of theta) becomes its neighbour.

    Both lie in bucket 71, so nothing is lost.
    """
    return jnp.minimum(jnp.abs(query_times - key_times), np.int32(2**31 - 2))


def time_bias(ops, spec, dt, low, high, theta, table):
    """Register tile table[bucket(dt)], given that all visible buckets lie in [low, high].

    'select' goes bucket by bucket, two instructions each for an entry; `low` and `high` keep that
    short, since chronological tiles away from the diagonal see few buckets. 'gather' guesses the
    bucket from a logarithm, one too low at worst, corrects it by its exact threshold, and reads the
    weight: about a dozen instructions whatever the span of the tile. 'auto' takes the shorter way.
    """

    def gather():
        # 0.01 is far above the error of the fast logarithm and far below a bucket.
        guess = jnp.log(jnp.maximum(dt, 1).astype(jnp.float32)) * (1.0 / INCREMENT) - 0.01
        bucket = jnp.clip(guess.astype(jnp.int32), 0, spec.num_buckets)
        above = dt >= ops.gather(theta, bucket + 1)
        return ops.gather(table, jnp.where(above, bucket + 1, bucket))

    def select():
        def step(c, tile):
            return jnp.where(dt >= theta[c], table[c], tile)

        return lax.fori_loop(low + 1, high + 1, step, ops.full(table[low]))

    if spec.lookup == "auto":
        return lax.cond(high - low > _FEW_BUCKETS, gather, select)
    return gather() if spec.lookup == "gather" else select()


def table_scratch(spec):
    """Shared memory of the time table and its thresholds, and the barrier of their arrival."""
    if not spec.time:
        return {}
    return {
        "theta": plgpu.SMEM((TABLE,), jnp.int32),
        "table": plgpu.SMEM((TABLE,), jnp.float32),
        "table_barrier": plgpu.Barrier(num_arrivals=2),
    }


def load_tables(spec, refs, scratch):
    """Bring the time table and its thresholds into shared memory."""
    if spec.time:
        for name in ("theta", "table"):
            plgpu.copy_gmem_to_smem(refs[name], scratch[name], scratch["table_barrier"])
        plgpu.barrier_wait(scratch["table_barrier"])


class BucketSums:
    """Sums of a tile's entries by time bucket, held by the warps: lane l has buckets l, l + 32, ..

    Nothing lies in memory, and no warp waits for another. `start` and `add` give and take the sums
    as a tuple of [128] vectors, an entry per thread.
    """

    rows = -(-(len(bucket_thresholds(TABLE)) + 1) // _WARP)

    def __init__(self, ops):
        self._ops = ops
        self._lane = ops.lane()

    def start(self):
        return (self._ops.per_thread(0.0),) * self.rows

    def add(self, sums, values, dt, low, high, theta):
        """Adds `values` of buckets low..high, given the time differences `dt`.

        From the highest bucket down, so that one comparison per bucket does: what lies at or past
        its threshold, less what lay past the one above.
        """

        def step(n, state):
            past, *sums = state
            c = high - n
            here = self._ops.warp_sums(jnp.where(dt >= theta[c], values, 0.0))
            more = here - past
            sums = [
                old + jnp.where(self._lane == c - row * _WARP, more, 0.0)
                for row, old in enumerate(sums)
            ]
            return here, *sums

        return lax.fori_loop(0, high - low + 1, step, (self._ops.per_thread(0.0), *sums))[1:]

    @classmethod
    def by_bucket(cls, parts):
        """[.., rows, 128] as the blocks wrote them -> [rows * 32], summed over all else."""
        return parts.reshape(-1, cls.rows, THREADS // _WARP, _WARP).sum((0, 2)).reshape(-1)


def _pieces(tensor, g, group, b, rows, buffer):
    """Source and target of each copy of a [group, 64, width] slice.

    TMA describes at most five dimensions, and widths above 64 need two for the swizzle: those
    heads go one by one.
    """
    if group == 1 or tensor.shape[-1] > 64:
        return [(tensor.at[b, g * group + h, rows], buffer.at[h]) for h in range(group)]
    return [(tensor.at[b, pl.ds(g * group, group), rows], buffer)]


def count_copies(tensors, group):
    """Barrier arrivals of `copy_in` over the tensors."""
    return sum(group if x.shape[-1] > 64 else 1 for x in tensors)


def copy_in(tensor, g, group, b, rows, buffer, barrier):
    """Start the copies of head group g of a [B, H, N, width] tensor into shared memory."""
    for source, target in _pieces(tensor, g, group, b, rows, buffer):
        plgpu.copy_gmem_to_smem(source, target, barrier)


def copy_out(buffer, tensor, g, group, b, rows):
    """Start the copies of [group, 64, width] in shared memory to head group g of a tensor."""
    for target, source in _pieces(tensor, g, group, b, rows, buffer):
        plgpu.copy_smem_to_gmem(source, target)
