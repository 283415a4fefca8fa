"""What Mosaic GPU kernels share: square tiles, staging through shared memory, launch.

One warpgroup (128 threads) per CUDA block works on tiles of 64 by 64 entries of a map; the tiles of
the axis it walks over arrive through a ring of shared-memory slots filled by TMA.

Interpret mode runs the same kernel bodies on a CPU. Three things differ there, because the
interpreter of JAX 0.10 has no rule for them: register layouts are dropped, matrix products are
plain dots on shared-memory accumulators instead of WGMMA, and ACC references are shared memory.
Indices, ring slots, barriers, masks and tile ranges are the same.
"""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

TILE = 64
# Widths a head is padded to. 32 bf16 values fill a 64-byte swizzle, 64 a 128-byte one.
WIDTHS = (32, 64, 128)


def check_supported(x, interpret, types=(jnp.bfloat16, jnp.float16)):
    """Raises NotImplementedError for a type or a device that these kernels do not serve."""
    if x.size == 0:
        raise NotImplementedError("an empty batch has no tiles")
    if interpret:
        return
    if x.dtype not in types:
        names = " and ".join(jnp.dtype(t).name for t in types)
        raise NotImplementedError(f"{x.dtype} inputs; the kernel takes {names}")
    if jax.default_backend() == "gpu":
        capability = str(getattr(jax.devices()[0], "compute_capability", ""))
        if not capability.startswith("9."):
            raise NotImplementedError(
                f"compute capability {capability or 'unknown'}; the kernel needs 9.x (Hopper)"
            )


def swizzled(shape, dtype):
    """Shared memory for 16-bit matrices [..., 64, width] that WGMMA and TMA both understand."""
    swizzle = min(128, shape[-1] * jnp.dtype(dtype).itemsize)
    if jnp.dtype(dtype).itemsize != 2:  # Only interpret mode gets here; transforms are ignored.
        return plgpu.SMEM(shape, dtype)
    transforms = (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


# JAX 0.12 dropped the index argument of plgpu.load.
_LOAD_TAKES_INDEX = "idx" in inspect.signature(plgpu.load).parameters


def load(ref, layout, optimized=False):
    """Read a reference into registers of a given layout (on the device alone)."""
    index = ((),) if _LOAD_TAKES_INDEX else ()
    return plgpu.load(ref, *index, layout=layout, optimized=optimized)


class Ops:
    """Device operations whose spelling differs between the GPU and interpret mode."""

    def __init__(self, interpret: bool):
        self.interpret = interpret

    def accumulator(self, width):
        shape = (TILE, width)
        if self.interpret:
            return plgpu.SMEM(shape, jnp.float32)
        return plgpu.ACC(shape, jnp.float32)

    def clear(self, *accumulators):
        if self.interpret:  # An ACC starts at zero, shared memory does not.
            for ref in accumulators:
                ref[...] = jnp.zeros(ref.shape, jnp.float32)

    def mma(self, acc, a, b, transpose_b=False):
        """acc += a @ b (b transposed if asked); `a` is a reference or a 16-bit register tile."""
        if self.interpret:
            a = a[...].astype(jnp.float32)
            b = b[...].astype(jnp.float32)
            acc[...] += jnp.dot(a, b.T if transpose_b else b)
            return
        plgpu.wgmma(acc, a, plgpu.transpose_ref(b, (1, 0)) if transpose_b else b)

    def product(self, pairs, transpose_b=True):
        """Register tile: sum of a @ b^T over the pairs, fp32 [64, 64]."""

        def compute(acc):
            self.clear(acc)
            for a, b in pairs:
                self.mma(acc, a, b, transpose_b)
            return acc[...]

        return pl.run_scoped(compute, self.accumulator(TILE))

    def accumulate(self, total, a, b):
        """total + a @ b for a register tile `total`."""
        if self.interpret:
            return total + jnp.dot(a.astype(jnp.float32), b[...].astype(jnp.float32))
        return pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.ACC.init(total))

    def wait(self):
        if not self.interpret:
            plgpu.wgmma_wait(0)

    def cast(self, x, layout):
        return x if self.interpret else plgpu.layout_cast(x, layout)

    def full(self, value, width=TILE):
        return self.cast(jnp.full((TILE, width), value), plgpu.Layout.WGMMA)

    def full_rows(self, value):
        """One value per tile row."""
        return self.cast(jnp.full((TILE,), value), plgpu.Layout.WGMMA.reduce(1))

    def spread(self, rows, width=TILE):
        """One value per tile row, as a [64, width] tile."""
        return lax.broadcast_in_dim(rows, (TILE, width), [0])

    def vector(self, ref, axis):
        """Load 64 values of a reference that run along `axis` of a tile, as a [64, 64] tile."""
        x = self._load(ref, plgpu.Layout.WGMMA.reduce(1 - axis))
        return lax.broadcast_in_dim(x, (TILE, TILE), [axis])

    def _load(self, ref, layout):
        if self.interpret:
            return ref[...]
        return load(ref, layout)

    def row_vector(self, ref):
        """Load 64 values, one per tile row, as a vector."""
        return self._load(ref, plgpu.Layout.WGMMA.reduce(1))

    def matrix(self, ref):
        """Load a plain row-major matrix into the WGMMA register layout."""
        return self._load(ref, plgpu.Layout.WGMMA)

    def iota(self, axis):
        if self.interpret:
            return lax.broadcasted_iota(jnp.int32, (TILE, TILE), axis)
        return plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), axis, layout=plgpu.Layout.WGMMA)


def ring(ops, first, last, stages, issue, consume, carry=None):
    """Walk over steps first..last-1 with `stages` shared-memory slots in flight.

    `issue(step, slot)` starts the copies of a step; `consume(step, slot, carry)` waits for them,
    computes and returns the next carry.
    """
    for slot in range(stages):

        @pl.when(first + slot < last)
        def _start(slot=slot):
            issue(first + slot, slot)

    def step(t, carry):
        slot = lax.rem(t - first, jnp.int32(stages))
        carry = consume(t, slot, carry)
        ops.wait()
        # All four warps must be done with the slot before TMA may overwrite it.
        plgpu.commit_smem()

        @pl.when(t + stages < last)
        def _refill():
            issue(t + stages, slot)

        return carry

    return lax.fori_loop(first, last, step, carry)


def extent(active, axis):
    """First and past-the-last true place along an axis, int32 each; 0 and 0 if there is none."""
    count = active.shape[axis]
    some = active.any(axis)
    first = jnp.where(some, active.argmax(axis), 0)
    last = jnp.where(some, count - jnp.flip(active, axis).argmax(axis), 0)
    return first.astype(jnp.int32), last.astype(jnp.int32)


def pad_axis(x, axis, size):
    """`x` with zeros behind it along one axis, up to `size`."""
    if x.shape[axis] == size:
        return x
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, pads)


def pad_width(width: int) -> int:
    """Smallest supported head width that holds `width`."""
    for candidate in WIDTHS:
        if width <= candidate:
            return candidate
    raise NotImplementedError(f"head width {width} is above {WIDTHS[-1]}")


def pad_heads(x, tiles, width):
    """[B, n, H, w] -> [B, H, tiles * 64, width], zero padded."""
    x = jnp.moveaxis(x, 2, 1)
    return pad_axis(pad_axis(x, 2, tiles * TILE), 3, width)


def interpret_argument(interpret: bool) -> dict:
    """Keyword arguments that turn interpret mode on, wherever this JAX keeps its class."""
    if not interpret:
        return {}
    if hasattr(plgpu, "InterpretGPUParams"):
        return {"interpret": plgpu.InterpretGPUParams()}
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return {"interpret": InterpretGPUParams()}


def launch(interpret, body, grid, names, out_type, scratch, *operands):
    """Run a kernel body over a grid of single-warpgroup blocks."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch,
        grid=grid,
        grid_names=names,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **interpret_argument(interpret),
    )(*operands)


def struct(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)
