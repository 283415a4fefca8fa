"""What the warp-specialised Hopper kernels of segment attention share: settings, ids, tile algebra.

Status: run on an H100 against the float32 definition; speed in docs/kernels.md.

A CUDA block has three warpgroups. Two compute, each on 64 rows of a tile that is 128 rows high; the
third only starts TMA copies into a ring of shared-memory slots. The technique is that of
FlashAttention-3 (arXiv 2407.08608, section 3): loads, products and softmax overlap because they
belong to different warpgroups, and within one because products are asynchronous.

Arrays are read in place as [B, T, N, H]: a copy to another order would cost as much time as a
tenth of the products. Interpret mode differs from the device as in `kernels.mosaic_gpu`.

Letters: B rows, T queries and S keys (padded to whole tiles), N query heads, K key-value heads, H
head width (padded), I / J tiles of queries / keys, A rows of the ids: B, or 1 where rows are alike.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels.mosaic_gpu import interpret_argument, load, pad_axis, swizzled
from pangu_jax.kernels.segment_attention.blocks import visible_blocks, whole_blocks

ROWS = 64  # Of one warpgroup: the height of a WGMMA tile.
TALL = 2 * ROWS  # Of one CUDA block.
MEMORY = 2  # The warpgroup that copies.
START = -1e30  # First running maximum; finite, so that masked logits of -inf weigh nothing.
SCHEDULES = ("plain", "overlap", "turns", "pingpong")
_PLACES = {"heads": ("b", "n", "i"), "tiles": ("i", "b", "n")}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and schedules of the kernels.

    block_k, stages: keys per step of the forward kernel, and steps in flight.
    schedule: of the forward kernel. 'plain': product, softmax, product. 'overlap': the product with
      v runs under the softmax of the next step. 'turns': that, and the two compute warpgroups start
      their products alternately. 'pingpong': one multiplies while the other is in its softmax.
    dq_block_k, dq_stages: of the kernel for the gradient of q.
    dkv_block_q, dkv_stages: of the kernel for the gradients of k and v.
    order: what neighbouring CUDA blocks share: 'heads' the keys of one head (they stay in L2),
      'tiles' their amount of work.
    compute_registers, memory_registers: per thread, multiples of 8.
    warpgroup_lowering: JAX's newer way of lowering (its default from 0.11 on).
    """

    block_k: int = 128
    stages: int = 2
    schedule: str = "overlap"
    dq_block_k: int = 64
    dq_stages: int = 3  # On an H100 a fifth faster than 2; more for dk and dv gained nothing.
    dkv_block_q: int = 64
    dkv_stages: int = 2
    order: str = "heads"
    compute_registers: int = 240
    memory_registers: int = 24
    warpgroup_lowering: bool = False

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r}; allowed are {', '.join(SCHEDULES)}.")
        for name in ("stages", "dq_stages", "dkv_stages"):
            if getattr(self, name) < 2:  # A slot is given back in the step after.
                raise ValueError(f"{name}={getattr(self, name)}; at least 2 are needed.")
        if self.order not in _PLACES:
            raise ValueError(f"order={self.order!r}; allowed are {', '.join(_PLACES)}.")


@dataclasses.dataclass(frozen=True)
class Spec:
    """Static facts of one call. lengths: (T, S); mask: 'order' (rows are one document in order),
    'segments' (documents in row order) or 'positions'; groups: query heads per key-value head."""

    scale: float
    window: int | None
    dtype: np.dtype
    lengths: tuple[int, int]
    groups: int
    width: int
    mask: str
    shared_ids: bool
    interpret: bool
    config: Config

    @property
    def scale_base2(self) -> float:
        return self.scale * math.log2(math.e)


def padded_lengths(queries, keys, config):
    """(T, S) for tiles of every kernel."""
    block = math.lcm(TALL, config.block_k, config.dq_block_k)
    return -(-queries // TALL) * TALL, -(-keys // block) * block


def spans(ids, lengths, sizes, window, axis):
    """What each tile of one side visits on the other: int32 [A, I, 4] (axis 2) or [A, J, 4] (1).

    First and past-the-last tile, and between them, in places 1 and 2, a run of tiles without mask.
    A tile that would visit nothing visits its other side's first tile, all of it masked.

    Args:
      ids: q and kv segment ids, q and kv positions, int32 [A, T] and [A, S], each or None.
      lengths: (T, S). sizes: of a query and a key tile. window: as in `api.segment_attention`.
    """
    blocks = lengths[0] // sizes[0], lengths[1] // sizes[1]
    rows = max((x.shape[0] for x in ids if x is not None), default=1)
    active, whole = (
        jnp.broadcast_to(table(*ids, blocks=blocks, sizes=sizes, window=window), (rows, *blocks))
        for table in (visible_blocks, whole_blocks)
    )
    active, whole = (jnp.moveaxis(x, axis, 2) for x in (active, whole))
    count = active.shape[2]
    place = jnp.arange(count, dtype=jnp.int32)
    first = jnp.where(active, place, count).min(2)
    last = jnp.where(active, place + 1, 0).max(2)
    first, last = jnp.where(last > 0, first, 0), jnp.maximum(last, 1)
    inside = whole & (place >= first[..., None]) & (place < last[..., None])
    begin = jnp.where(inside, place, count).min(2)
    broken = ~inside & (place >= begin[..., None])
    end = jnp.minimum(jnp.where(broken, place, count).min(2), last)
    begin = jnp.minimum(begin, last)
    return jnp.stack([first, begin, jnp.maximum(begin, end), last], axis=-1).astype(jnp.int32)


def prepare_ids(padded, q_segment_ids, kv_segment_ids, q_positions, kv_positions):
    """(kind of mask, the four arrays padded, each or None). Padding gets segment 0."""
    if q_segment_ids is None and q_positions is None:
        return "order", (None,) * 4  # T = S here: padded keys are later than every query.
    given = [q_segment_ids, kv_segment_ids, q_positions, kv_positions]
    if q_segment_ids is None:
        given[:2] = (jnp.ones_like(x) for x in (q_positions, kv_positions))
    ids = tuple(None if x is None else pad_axis(x, 1, padded[n % 2]) for n, x in enumerate(given))
    return "segments" if q_positions is None else "positions", ids


class Ops:
    """Tile algebra on the device, and its stand-in for interpret mode."""

    def __init__(self, spec: Spec):
        self.spec, self.interpret = spec, spec.interpret

    def registers(self, count, action):
        if not self.interpret:
            plgpu.set_max_registers(count, action=action)

    def cast(self, x, layout=plgpu.Layout.WGMMA):
        return x if self.interpret else plgpu.layout_cast(x, layout)

    def zeros(self, width):
        return self.cast(jnp.zeros((ROWS, width), jnp.float32))

    def full_rows(self, value):
        return self.cast(jnp.full((ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))

    def rows(self, ref):
        """64 values of a reference, one per tile row."""
        return ref[...] if self.interpret else load(ref, plgpu.Layout.WGMMA.reduce(1))

    def columns(self, ref):
        """Values of a reference, one per tile column, as a vector."""
        return ref[...] if self.interpret else load(ref, plgpu.Layout.WGMMA.reduce(0))

    def spread(self, vector, shape, axis=0):
        """A vector along `axis` of a tile, as that tile."""
        return lax.broadcast_in_dim(vector, shape, [axis])

    def iota(self, shape, axis):
        if self.interpret:
            return lax.broadcasted_iota(jnp.int32, shape, axis)
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def product(self, a, b):
        """a b^T for references [64, H] and [n, H]: a register tile fp32 [64, n]."""
        if self.interpret:
            return _dot(a[...], b[...].T)

        def compute(acc):
            plgpu.wgmma(acc, a, transposed(b))
            return acc[...]

        return pl.run_scoped(compute, plgpu.ACC((ROWS, b.shape[0]), jnp.float32))

    def add_product(self, total, a, b):
        """total + a b for register tiles `total`, `a` and a reference b."""
        if self.interpret:
            return total + _dot(a, b[...])
        return pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.ACC.init(total))

    def add_product_under(self, total, a, b, pair, results, started, use, used, together):
        """(total + a b, *use(c d^T)) with (c, d) = pair; `use` runs while a b is being summed.

        Args:
          total, a: register tiles. b, pair: references.
          results: arrays shaped as what `use` returns; their values do not matter.
          started: called when both products are on their way. used: called after `use`; waits for a
            barrier, which also keeps ptxas from moving `use` behind the wait for a b.
          together: wait for both products before `use`.
        """
        if self.interpret:
            out = self.add_product(total, a, b)
            started()
            values = use(self.product(*pair))
            used()
            return out, *values
        c, d = pair

        def compute(refs):
            acc, *places = refs

            def within(logits):
                plgpu.wgmma(logits, c, transposed(d))
                plgpu.wgmma(acc, a, b)
                if not together:
                    started()
                tile = plgpu.wgmma_accumulator_load(logits, wait_n=0 if together else 1)
                if together:
                    started()
                values = lax.optimization_barrier(use(tile))  # The same against LLVM.
                used()
                for place, value in zip(places, values, strict=True):
                    place[...] = value

            pl.run_scoped(within, plgpu.ACC((ROWS, d.shape[0]), jnp.float32))

        return pl.run_state(compute)((plgpu.ACC.init(total), *results))

    def accumulate(self, count, compute):
        """Totals [64, H] of what `compute(totals)` adds with `add` and hands on, as a tuple.

        On the device the totals are accumulators outside of JAX's values, and products may be on
        their way from one step to the next; the tuple that is handed on is empty.
        """
        if self.interpret:
            return compute((jnp.zeros((ROWS, self.spec.width), jnp.float32),) * count)

        def scope(*accumulators):
            self.accumulators = accumulators
            compute(())
            plgpu.wgmma_wait(0)
            return tuple(acc[...] for acc in accumulators)

        return pl.run_scoped(scope, *[plgpu.ACC((ROWS, self.spec.width), jnp.float32)] * count)

    def add(self, totals, which, a, b):
        """Starts totals[which] += a b for a register tile a and a reference b."""
        if self.interpret:
            new = totals[which] + _dot(a, b[...])
            return (*totals[:which], new, *totals[which + 1 :])
        plgpu.wgmma(self.accumulators[which], a, b)
        return totals

    def wait(self, running):
        """Waits until at most `running` products are on their way."""
        if not self.interpret:
            plgpu.wgmma_wait(running)

    def two_products(self, one, two, wait_two, first, second, running):
        """second(first(a b^T), c d^T) for (a, b) = one and (c, d) = two; `first` runs under c d^T.

        Args:
          wait_two: called before the second product is started.
          running: products that `first` starts itself, which may still run when `second` begins.
        """
        if self.interpret:
            wait_two()
            value = first(self.product(*one))
            return second(value, self.product(*two))

        def within(left, right):
            plgpu.wgmma(left, one[0], transposed(one[1]))
            wait_two()
            plgpu.wgmma(right, two[0], transposed(two[1]))
            value = first(plgpu.wgmma_accumulator_load(left, wait_n=1))
            return second(value, plgpu.wgmma_accumulator_load(right, wait_n=running))

        shapes = [plgpu.ACC((ROWS, pair[1].shape[0]), jnp.float32) for pair in (one, two)]
        return pl.run_scoped(within, *shapes)


def _dot(a, b):
    return jnp.dot(a.astype(jnp.float32), b.astype(jnp.float32))


def transposed(ref):
    """View [n, m] of a reference [m, n]."""
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))


def visible(spec, ops, ids, starts, shape, query_axis):
    """bool tile: which query sees which key.

    Args:
      ids: function (side, kind) -> the tile's ids of that side as a vector; side 0 is queries, kind
        0 segments, 1 positions.
      starts: first query and first key of the tile in the row.
      shape: of the tile. query_axis: along which queries run.
    """

    def spread(side, kind):
        axis = query_axis if side == 0 else 1 - query_axis
        return ops.spread(ids(side, kind), shape, axis)

    if spec.mask == "positions":
        distance = spread(0, 1) - spread(1, 1)
        near, far = 0, spec.window
    else:
        # Differences within the tile are known to the compiler; only their bound is not.
        distance = ops.iota(shape, query_axis) - ops.iota(shape, 1 - query_axis)
        near = starts[1] - starts[0]
        far = None if spec.window is None else spec.window + near
    see = distance >= near
    if far is not None:
        see = see & (distance < far)
    if spec.mask != "order":
        of_query = spread(0, 0)
        see = see & (of_query == spread(1, 0)) & (of_query > 0)
    return see


def fill(steps, stages, names, scratch, issue):
    """The memory warpgroup's part: `issue(name, step, slot)` for every step, in a ring of slots.

    A slot is refilled once `<name>_free` of it completes: in all, a wait for every step, the last
    ones at the end, so that no arrival is left unseen.
    """

    def step(t, carry):
        slot = lax.rem(t, jnp.int32(stages))
        for name in names:

            @pl.when(t >= stages)
            def _wait(name=name):
                plgpu.barrier_wait(scratch[name + "_free"].at[slot])

            @pl.when(t < steps)
            def _issue(name=name):
                issue(name, t, slot)

        return carry

    lax.fori_loop(0, steps + stages, step, None)


def tile_buffer(spec, *shape):
    """Shared memory for tiles [..., rows, H]."""
    return swizzled((*shape, spec.width), spec.dtype)


def launch(spec, body, counts, operands, out_type, scratch):
    """Runs `body(place, warpgroup, refs, outputs, scratch)` on blocks of three warpgroups.

    Args:
      counts: tiles, heads and batch rows: the grid. place: {'i', 'n', 'b'} of a block.
      operands, out_type, scratch: dictionaries; the body gets its references by the same names.
    """
    names = _PLACES[spec.config.order]
    counts = dict(zip("inb", counts, strict=True))

    def flat(*refs):
        parts, at = [], 0
        for group in (operands, out_type, scratch):
            parts.append(dict(zip(group, refs[at : at + len(group)], strict=True)))
            at += len(group)
        place = {name: lax.axis_index(name) for name in names}
        body(place, lax.axis_index("wg"), *parts)

    lowering = {}
    if not spec.config.warpgroup_lowering and hasattr(plgpu, "LoweringSemantics"):
        lowering = {"lowering_semantics": plgpu.LoweringSemantics.Lane}
    outs = plgpu.kernel(
        flat,
        out_type=list(out_type.values()),
        scratch_types=list(scratch.values()),
        grid=tuple(counts[name] for name in names),
        grid_names=names,
        num_threads=3,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, reduction_scratch_bytes=512, **lowering
        ),
        **interpret_argument(spec.interpret),
    )(*operands.values())
    return dict(zip(out_type, outs, strict=True))


def struct(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)
