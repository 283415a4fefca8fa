"""Walking over rows on a Hopper GPU: what the Mosaic GPU kernels of RMSNorm share.

A block of up to eight warpgroups owns every n-th row, n the number of blocks, and every warpgroup a
slice of the columns. Rows arrive one by one through a ring of shared-memory slots that each
warpgroup fills by TMA for itself; results go into the slots they came from and leave by TMA. Gains
stay in registers from the first row to the last, and so do the float32 sums for the gradients of
the gains: shared memory holds nothing but rows on their way. The slot of a row that is done is
filled again during the next row, while its warpgroups wait for their first sum. Each block writes
its own sums, which XLA adds up, so results repeat bit for bit.

The warpgroups meet once per sum over a row: every warp leaves its part in shared memory, and all
add the parts up in the same order.

Letters: R rows, D width, G warpgroups of a block, L = D / 128 / G lines of a slice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels import mosaic_gpu

LANES = 128
_WARPS = 4
_PROCESSORS = 132  # Multiprocessors of a Hopper GPU.
_SHARED_BYTES = 208 * 1024  # Of 227 KiB per multiprocessor, less a margin for each block.
_REGISTERS = 65536  # Per multiprocessor.
_THREADS = 2048  # Per multiprocessor.
# Bytes to be read and written that are on their way, per multiprocessor: fewer leave the memory
# waiting, more make it turn between reading and writing too often (measured on an H100).
_IN_FLIGHT_BYTES = 48 * 1024
# Registers of a thread beside gains and sums, at most, as ptxas reports.
_WORKING_REGISTERS = 64
_MAX_KEPT = 96  # Registers of a thread for gains and sums together.
_MAX_LINES = 32  # Of a slice: registers of a thread per gain or sum.
_FEW_LINES = 24  # Preferred.
_MAX_GROUPS = 8
_MAX_BLOCKS = 16  # Per multiprocessor.
_MAX_STAGES = 4
_CHUNK = 8  # Lines worked on at a time.


@dataclasses.dataclass(frozen=True)
class Spec:
    """Static facts of an operation. lines: D / 128."""

    eps: float
    post: bool
    rows: int
    lines: int
    dtype: np.dtype
    interpret: bool

    @property
    def groups(self) -> int:
        """Warpgroups of a block: as few as hold the width, short slices and wide accesses first."""
        fits = [
            g
            for g in range(1, _MAX_GROUPS + 1)
            if self.lines % g == 0 and self.lines // g <= _MAX_LINES
        ]
        if not fits:
            raise NotImplementedError(
                f"width {self.lines * LANES} does not divide into at most {_MAX_GROUPS} equal "
                f"parts that are multiples of {LANES} and at most {_MAX_LINES * LANES}"
            )
        return max(
            fits,
            key=lambda g: (self.lines // g <= _FEW_LINES, *_evenness(self.lines // g), -g),
        )

    @property
    def slice(self) -> int:
        """Lines of a warpgroup."""
        return self.lines // self.groups

    @property
    def chunks(self) -> list[pl.Slice]:
        """Parts of a slice that are worked on at a time."""
        sizes = [n for n in range(1, _CHUNK + 1) if self.slice % n == 0]
        size = max(sizes, key=lambda n: (*_evenness(n), n))
        return [pl.ds(at, size) for at in range(0, self.slice, size)]


def _evenness(lines):
    """Sorts numbers of lines by how many entries a thread can read at once."""
    return lines % 4 == 0, lines % 2 == 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a kernel divides the rows: blocks of up to `share` rows, `stages` rows in flight in each.

    gains_kept: whether the gains stay in registers, or come from the second-level cache each time.
    """

    share: int
    blocks: int
    stages: int
    gains_kept: bool


def plan(spec: Spec, arrays: int, outputs: int, gains: int, sums: int) -> Plan:
    """Blocks per multiprocessor and depth of the ring, for `_IN_FLIGHT_BYTES`.

    All but one row of a ring are on their way while that one is worked on. Two rows per block where
    registers and shared memory have room for enough blocks, deeper rings where not.

    Args:
      spec: static facts.
      arrays: arrays of rows that are read.
      outputs: arrays of rows that are written.
      gains: gains.
      sums: sums over the rows, which stay in registers.

    Raises:
      NotImplementedError: if one row does not fit.
    """
    one = spec.lines * LANES * spec.dtype.itemsize
    row = arrays * one
    if row > _SHARED_BYTES:
        raise NotImplementedError(
            f"width {spec.lines * LANES} exceeds the shared memory of a block"
        )
    threads = spec.groups * LANES
    gains_kept = (gains + sums) * spec.slice <= _MAX_KEPT
    # Beside a sum a thread holds what was read for it.
    registers = (gains * gains_kept + 2 * sums) * spec.slice + _WORKING_REGISTERS
    resident = max(
        1,
        min(
            _MAX_BLOCKS, _THREADS // threads, _REGISTERS // (threads * min(255, registers)),
            _SHARED_BYTES // (2 * row),
        ),
    )  # fmt: skip
    rows_in_flight = max(1, round(_IN_FLIGHT_BYTES / ((arrays + outputs) * one)))
    per_processor = min(resident, rows_in_flight)
    share = -(-spec.rows // min(_PROCESSORS * per_processor, spec.rows))
    stages = min(
        1 + -(-rows_in_flight // per_processor), _MAX_STAGES, share,
        _SHARED_BYTES // per_processor // row,
    )  # fmt: skip
    return Plan(share, -(-spec.rows // share), stages, gains_kept)


def _store_warp_sums(ref, values):
    """ref[n, warp of the block] = sum over the warp's entries of values[n]."""
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith, memref, vector

    layouts = [layout for _, layout in values]

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), *layouts))
    def store(ctx, target, *arrays):
        del ctx
        index, i32 = ir.IndexType.get(), ir.IntegerType.get_signless(32)
        warp = arith.index_cast(index, arith.shrui(utils.thread_idx(), utils.c(5, i32)))
        for n, array in enumerate(arrays):
            total = None
            for register in array.registers.flat:
                [width] = ir.VectorType(register.type).shape
                for at in range(width):
                    entry = vector.extract(
                        register,
                        dynamic_position=[],
                        static_position=ir.DenseI64ArrayAttr.get([at]),
                    )
                    total = entry if total is None else arith.addf(total, entry)
            for distance in (1, 2, 4, 8, 16):
                total = arith.addf(total, utils.shfl_bfly(total, distance))
            memref.store(total, target, [utils.c(n, index), warp])

    store(ref, *(value for value, _ in values))


def _now(value, layout):
    """`value`, computed here: LLVM would move an addition to the end of a loop whose next turn is
    the only one to need it, and keep both terms in registers until then.
    """
    from jax.experimental.mosaic.gpu import FragmentedArray
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import llvm, vector

    same = plgpu.ShapeDtypeStruct(value.shape, value.dtype, layout=layout)

    @plgpu.inline_mgpu(arg_types=(layout,), return_type=same)
    def fix(ctx, array):
        del ctx
        registers = np.empty_like(array.registers)
        for at, register in np.ndenumerate(array.registers):
            [width] = ir.VectorType(register.type).shape
            for n in range(width):
                place = ir.DenseI64ArrayAttr.get([n])
                entry = vector.extract(register, dynamic_position=[], static_position=place)
                entry = llvm.inline_asm(entry.type, [entry], "", "=f,0", has_side_effects=True)
                register = vector.insert(
                    entry, register, dynamic_position=[], static_position=place
                )
            registers[at] = register
        return FragmentedArray(
            _registers=registers, _layout=array.layout, _is_signed=array.is_signed
        )

    return fix(value)


class Row:
    """One row in shared memory, as a warpgroup sees it: its slice, chunk by chunk."""

    def __init__(self, spec: Spec, slots, gain, meeting, meanwhile):
        self._spec = spec
        self._slots = slots
        self._meeting = meeting
        self._meanwhile = meanwhile  # Called once, while the warpgroups wait for each other.
        self._sums_taken = 0
        self.gain = gain  # (name, number of the chunk) -> float32 [lines, 128]
        self.chunks = spec.chunks

    def read(self, name: str, n: int) -> jax.Array:
        """Chunk n of an array's row: float32 [lines, 128]."""
        return _read(self._spec, self._slots[name], self.chunks[n]).astype(jnp.float32)

    def write(self, name: str, n: int, value: jax.Array) -> jax.Array:
        """Replaces chunk n of an array's row, and returns what `read` would give now."""
        value = value.astype(self._spec.dtype)
        self._slots[name].at[self.chunks[n]][...] = value
        return value.astype(jnp.float32)

    def add(self, total: jax.Array, term: jax.Array) -> jax.Array:
        """total + term, of a sum over the rows."""
        total = total + term
        return total if self._spec.interpret else _now(total, _layout(total.shape[0]))

    def means(self, terms: Callable[[int], tuple[jax.Array, ...]]) -> list[jax.Array]:
        """Mean over the whole row of every term, given by chunk of this warpgroup's slice."""
        totals = None
        for n in range(len(self.chunks)):
            more = terms(n)
            totals = more if totals is None else [a + b for a, b in zip(totals, more, strict=True)]
        partial, barrier, parity, group = self._meeting
        parts = partial.at[lax.rem(parity + self._sums_taken, jnp.int32(2))]
        self._sums_taken += 1
        if self._spec.interpret:
            for n, total in enumerate(totals):
                line = jnp.zeros(_WARPS, jnp.float32).at[0].set(total.sum())
                parts.at[n, pl.ds(group * _WARPS, _WARPS)][...] = line
        else:
            layout = _layout(self.chunks[0].size)
            _store_warp_sums(parts, [(total, layout) for total in totals])
        plgpu.barrier_arrive(barrier)
        if self._sums_taken == 1:
            self._meanwhile()
        plgpu.barrier_wait(barrier)
        warps = self._spec.groups * _WARPS
        scale = 1.0 / (self._spec.lines * LANES)
        return [
            functools.reduce(lambda a, b: a + b, [parts[n, w] for w in range(warps)]) * scale
            for n in range(len(totals))
        ]

    def inverse(self, mean_square: jax.Array) -> jax.Array:
        """1 / sqrt(mean square + eps)."""
        return lax.rsqrt(mean_square + self._spec.eps)


def _layout(lines):
    # One layout for all reads and writes of a chunk: what makes an entry a thread's own.
    vector = 4 if lines % 4 == 0 else 2 if lines % 2 == 0 else 1
    return plgpu.Layout.WG_STRIDED((lines, LANES), vec_size=vector)


def _read(spec, ref, chunk, optimized=True):
    part = ref.at[chunk]
    if spec.interpret:
        return part[...]
    return mosaic_gpu.load(part, _layout(chunk.size), optimized=optimized)


def _zeros(spec, chunk):
    zeros = jnp.zeros((chunk.size, LANES), jnp.float32)
    return zeros if spec.interpret else plgpu.layout_cast(zeros, _layout(chunk.size))


# (row, sums so far by name) -> sums by name; changes the row in place.
Body = Callable[[Row, dict[str, list[jax.Array]]], dict[str, list[jax.Array]]]


def over_rows(
    spec: Spec,
    body: Body,
    means: int,
    rows: dict[str, jax.Array],
    gains: dict[str, jax.Array],
    outputs: list[str],
    sums: tuple[str, ...] = (),
) -> tuple[jax.Array, ...]:
    """One kernel over all rows.

    Args:
      spec: static facts.
      body: works on one row in place.
      means: calls of `Row.means` in the body.
      rows: name -> [R, D].
      gains: name -> [D].
      outputs: names of the rows that are written back, changed.
      sums: names of the sums over the rows.

    Returns:
      The outputs [R, D], and the sums as float32 [D].

    Raises:
      NotImplementedError: for widths that do not fit.
    """
    shape = (spec.groups, spec.slice, LANES)
    how = plan(spec, len(rows), len(outputs), len(gains), len(sums))
    stages = how.stages

    def kernel(*refs):
        refs = iter(refs)
        sources, gain_refs, targets, sum_targets = (
            {name: next(refs) for name in names} for names in (rows, gains, outputs, sums)
        )
        slots = {name: next(refs) for name in rows}
        partial, ready, meet = refs
        block, group = lax.axis_index("block"), lax.axis_index("group")
        count = (spec.rows - block + how.blocks - 1) // how.blocks

        def nth(n):
            # What the chip reads and writes at a time lies together, whatever the number of blocks.
            return block + n * how.blocks

        def barrier(slot):
            return ready.at[slot * spec.groups + group]

        def issue(n, slot):
            for name in rows:
                source = sources[name].at[nth(n), group]
                plgpu.copy_gmem_to_smem(source, slots[name].at[slot, group], barrier(slot))

        for slot in range(stages):

            @pl.when(slot < count)
            def _start(slot=slot):
                issue(jnp.int32(slot), slot)

        def gain(name, n):
            return _read(spec, gain_refs[name].at[group], spec.chunks[n], optimized=False)

        if how.gains_kept:  # Read while the first rows are on their way.
            kept = {name: [gain(name, n) for n in range(len(spec.chunks))] for name in gains}

            def gain(name, n):
                return kept[name][n]

        def step(n, carry):
            slot = lax.rem(n, jnp.int32(stages))
            plgpu.barrier_wait(barrier(slot))
            place = {name: slots[name].at[slot, group] for name in rows}

            def refill(late):
                """Fills the slot of row n - late again, whose results have left it."""
                following = n - late + stages

                @pl.when((n >= late) & (following < count))
                def _issue():
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    issue(following, lax.rem(following, jnp.int32(stages)))

            # The results of the row before have until this row's first sum to leave their slot.
            # A single slot must wait for its own.
            meanwhile = functools.partial(refill, 1) if stages > 1 else lambda: None
            row = Row(spec, place, gain, (partial, meet, n * means, group), meanwhile)
            carry = body(row, carry)
            plgpu.commit_smem()
            for name in outputs:
                plgpu.copy_smem_to_gmem(place[name], targets[name].at[nth(n), group])
            if stages == 1:
                refill(0)
            return carry

        totals = {name: [_zeros(spec, c) for c in spec.chunks] for name in sums}
        totals = lax.fori_loop(0, count, step, totals)
        for name in sums:
            for c, value in zip(spec.chunks, totals[name], strict=True):
                sum_targets[name].at[block, group, c][...] = value
        plgpu.wait_smem_to_gmem(0)

    struct = mosaic_gpu.struct
    results = plgpu.kernel(
        kernel,
        out_type=[struct((spec.rows, *shape), spec.dtype) for _ in outputs]
        + [struct((how.blocks, *shape), jnp.float32) for _ in sums],
        scratch_types=[plgpu.SMEM((stages, *shape), spec.dtype) for _ in rows]
        + [
            # Twice, by turns: a warpgroup may be one sum ahead of another that still reads.
            plgpu.SMEM((2, 4, spec.groups * _WARPS), jnp.float32),
            plgpu.Barrier(num_arrivals=len(rows), num_barriers=stages * spec.groups),
            plgpu.Barrier(num_arrivals=spec.groups),
        ],
        grid=(how.blocks,),
        grid_names=("block",),
        num_threads=spec.groups,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **mosaic_gpu.interpret_argument(spec.interpret),
    )(
        *(x.reshape(-1, *shape) for x in rows.values()),
        *(gain.astype(jnp.float32).reshape(shape) for gain in gains.values()),
    )
    count = len(outputs)
    width = spec.lines * LANES
    return (
        *(x.reshape(-1, width) for x in results[:count]),
        *(x.sum(0).reshape(-1) for x in results[count:]),
    )
