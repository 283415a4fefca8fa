"""RMSNorm and the residual step as Mosaic GPU kernels for Hopper: one pass over the rows, each way.

A block of one warpgroup owns a share of the rows. They arrive one by one through a ring of
shared-memory slots filled by TMA; results go into the slots they came from and leave by TMA. A row
is worked on in chunks of at most 2,048 entries, so that registers do not grow with the width, and
the chunks of a row are read from shared memory, where every thread meets only its own entries. The
gains lie in shared memory too, and the gradients of the gains are summed there in float32; each
block writes its own sums, which XLA adds up, so results repeat bit for bit.

Status: compiled ahead of time for H100 and run in interpret mode on CPU against the float64
definition; not yet run on a GPU, so neither its results there nor its speed are known.

Letters: R rows (all axes but the last), D width, L = D / 128. The formulas are in `pallas_tpu`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pangu_jax.kernels import mosaic_gpu

_LANES = 128
_CHUNK = 16  # Chunks of at most 16 x 128 entries: 16 registers of a thread.
_BLOCKS = 264  # About two blocks per multiprocessor of a Hopper GPU.
_SHARED_BYTES = 216 * 1024  # Of 227 KiB, less a margin.
_MAX_STAGES = 4


@dataclasses.dataclass(frozen=True)
class _Spec:
    """Static facts. chunks: (first, size) along L."""

    eps: float
    post: bool
    rows: int
    lines: int
    dtype: np.dtype
    interpret: bool

    @property
    def share(self) -> int:
        """Rows of a block."""
        return -(-self.rows // min(_BLOCKS, self.rows))

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.share)

    @property
    def chunks(self) -> list[pl.Slice]:
        sizes = [n for n in range(1, _CHUNK + 1) if self.lines % n == 0]
        # Wide accesses first: 4 entries of a thread at a time, or 2.
        size = max(sizes, key=lambda n: (n % 4 == 0, n % 2 == 0, n))
        return [pl.ds(at, size) for at in range(0, self.lines, size)]


def rms_norm_pallas_gpu(
    x: jax.Array, scale: jax.Array, *, eps: float, interpret: bool = False
) -> jax.Array:
    """Arguments and value as in `api.rms_norm`.

    Raises:
      NotImplementedError: for types, widths or devices the kernel does not serve.
    """
    spec = _spec(x, eps, False, interpret)
    return _norm(spec, _lines(x), scale).reshape(x.shape)


def fused_sandwich_step_pallas_gpu(
    x: jax.Array,
    branch: jax.Array,
    post_scale: jax.Array | None,
    next_scale: jax.Array,
    *,
    eps: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and values as in `api.fused_sandwich_step`.

    Raises:
      NotImplementedError: as `rms_norm_pallas_gpu`, and for unequal types of x and branch.
    """
    if branch.dtype != x.dtype:
        raise NotImplementedError(f"x is {x.dtype} and branch {branch.dtype}; they must be equal")
    spec = _spec(x, eps, post_scale is not None, interpret)
    stream, following = _step(spec, _lines(x), _lines(branch), post_scale, next_scale)
    return stream.reshape(x.shape), following.reshape(x.shape)


def _lines(x):
    return x.reshape(-1, x.shape[-1] // _LANES, _LANES)


def _spec(x, eps, post, interpret):
    types = (jnp.float32, jnp.bfloat16, jnp.float16)
    mosaic_gpu.check_supported(x, interpret, types)
    width = x.shape[-1]
    if width % _LANES or width > 256 * _LANES:
        raise NotImplementedError(
            f"width {width}; the kernel takes multiples of {_LANES} up to {256 * _LANES}"
        )
    rows = x.size // width
    return _Spec(float(eps), post, rows, width // _LANES, np.dtype(x.dtype), interpret)


class _Ops:
    """Access to a row in shared memory, chunk by chunk."""

    def __init__(self, spec):
        self.spec = spec

    def read(self, ref, chunk):
        """float32 [chunk, 128]."""
        part = ref.at[chunk]
        if self.spec.interpret:
            return part[...].astype(jnp.float32)
        return mosaic_gpu.load(part, self._layout(chunk), optimized=True).astype(jnp.float32)

    def zeros(self, chunk):
        zeros = jnp.zeros((chunk.size, _LANES), jnp.float32)
        return zeros if self.spec.interpret else plgpu.layout_cast(zeros, self._layout(chunk))

    def _layout(self, chunk):
        # One layout for all reads and writes of a chunk: what makes an entry a thread's own.
        vector = 4 if chunk.size % 4 == 0 else 2 if chunk.size % 2 == 0 else 1
        return plgpu.Layout.WG_STRIDED((chunk.size, _LANES), vec_size=vector)

    def write(self, ref, chunk, value):
        ref.at[chunk][...] = value.astype(ref.dtype)

    def mean(self, term):
        """Mean over the row of `term(chunk)`."""
        total = functools.reduce(lambda a, b: a + b, map(term, self.spec.chunks))
        return jnp.sum(total) * (1.0 / (self.spec.lines * _LANES))

    def inverse(self, row):
        """1 / sqrt(mean square + eps) of a row."""
        return lax.rsqrt(self.mean(lambda c: self.read(row, c) ** 2) + self.spec.eps)


def _norm_body(spec, ops, row, gains, sums):
    inverse = ops.inverse(row["x"])
    for c in spec.chunks:
        ops.write(row["x"], c, ops.read(row["x"], c) * inverse * ops.read(gains["gain"], c))


def _step_body(spec, ops, row, gains, sums):
    inverse = ops.inverse(row["branch"]) if spec.post else None
    for c in spec.chunks:
        added = ops.read(row["branch"], c)
        if spec.post:
            added = added * inverse * ops.read(gains["post"], c)
        ops.write(row["x"], c, ops.read(row["x"], c) + added)
    inverse = ops.inverse(row["x"])  # The second norm sees the rounded stream.
    for c in spec.chunks:
        value = ops.read(row["x"], c) * inverse * ops.read(gains["gain"], c)
        ops.write(row["branch"], c, value)


def _norm_gradient_body(spec, ops, row, gains, sums):
    inverse, gradient = _pull(ops, row["x"], row["dy"], gains["gain"])
    for c in spec.chunks:
        summand = ops.read(row["dy"], c) * ops.read(row["x"], c) * inverse
        value = gradient(c)
        _add(ops, sums["gain"], c, summand)
        ops.write(row["dy"], c, value)


def _pull(ops, x, dy, gain):
    """1 / rms of a row, and a function chunk -> gradient of a norm by that row."""
    inverse = ops.inverse(x)
    product = ops.mean(lambda c: ops.read(dy, c) * ops.read(gain, c) * ops.read(x, c))
    factor = product * inverse * inverse * inverse

    def gradient(c):
        return ops.read(dy, c) * ops.read(gain, c) * inverse - ops.read(x, c) * factor

    return inverse, gradient


def _step_gradient_body(spec, ops, row, gains, sums):
    inverse, gradient = _pull(ops, row["stream"], row["d_following"], gains["gain"])

    def d_stream(c):
        return gradient(c) + ops.read(row["d_stream"], c)

    if spec.post:
        inverse_b = ops.inverse(row["branch"])
        product = ops.mean(
            lambda c: d_stream(c) * ops.read(gains["post"], c) * ops.read(row["branch"], c)
        )
        factor = product * inverse_b * inverse_b * inverse_b
    for c in spec.chunks:
        value = d_stream(c)
        hat = ops.read(row["stream"], c) * inverse
        _add(ops, sums["gain"], c, ops.read(row["d_following"], c) * hat)
        if spec.post:
            branch = ops.read(row["branch"], c)
            _add(ops, sums["post"], c, value * branch * inverse_b)
            d_branch = value * ops.read(gains["post"], c) * inverse_b - branch * factor
            ops.write(row["branch"], c, d_branch)
        ops.write(row["d_stream"], c, value)


def _add(ops, sums, c, summand):
    ops.write(sums, c, ops.read(sums, c) + summand)


def _call(spec, body, rows, gains, outputs, sums=()):
    """One kernel over all rows.

    Args:
      spec: static facts.
      body: works on one row in place.
      rows: name -> [R, L, 128].
      gains: name -> [D].
      outputs: names of the rows that are written back, changed.
      sums: names of the gains whose gradients are summed.

    Returns:
      The outputs, and the sums as float32 [D].
    """
    ops, shape = _Ops(spec), (spec.lines, _LANES)
    line = spec.lines * _LANES
    room = _SHARED_BYTES - 4 * line * (len(gains) + len(sums))
    stages = min(_MAX_STAGES, spec.share, room // (line * spec.dtype.itemsize * len(rows)))
    if stages < 1:
        raise NotImplementedError(f"width {line} exceeds the shared memory of a block")

    def kernel(*refs):
        refs = iter(refs)
        sources, gain_refs, targets, sum_targets = (
            {name: next(refs) for name in names} for names in (rows, gains, outputs, sums)
        )
        slots, gain_rows, sum_rows = (
            {name: next(refs) for name in names} for names in (rows, gains, sums)
        )
        gain_barrier, ready = refs
        block = lax.axis_index("block")
        first = block * spec.share
        last = jnp.minimum(first + spec.share, spec.rows)
        for name in gains:
            plgpu.copy_gmem_to_smem(gain_refs[name], gain_rows[name], gain_barrier)
        plgpu.barrier_wait(gain_barrier)
        for name in sums:
            for c in spec.chunks:
                ops.write(sum_rows[name], c, ops.zeros(c))

        def issue(t, slot):
            for name in rows:
                source = sources[name].at[t]
                plgpu.copy_gmem_to_smem(source, slots[name].at[slot], ready.at[slot])

        for slot in range(stages):

            @pl.when(first + slot < last)
            def _start(slot=slot):
                issue(first + slot, slot)

        def step(t, carry):
            slot = lax.rem(t - first, jnp.int32(stages))
            plgpu.barrier_wait(ready.at[slot])
            row = {name: slots[name].at[slot] for name in rows}
            body(spec, ops, row, gain_rows, sum_rows)
            plgpu.commit_smem()
            for name in outputs:
                plgpu.copy_smem_to_gmem(row[name], targets[name].at[t])

            @pl.when(t + stages < last)
            def _refill():
                # What leaves the slot must have left before TMA overwrites it.
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                issue(t + stages, slot)

            return carry

        lax.fori_loop(first, last, step, None)
        plgpu.commit_smem()
        for name in sums:
            plgpu.copy_smem_to_gmem(sum_rows[name], sum_targets[name].at[block])
        plgpu.wait_smem_to_gmem(0)

    gain_lines = [gain.astype(jnp.float32).reshape(shape) for gain in gains.values()]
    results = mosaic_gpu.launch(
        spec.interpret,
        kernel,
        (spec.blocks,),
        ("block",),
        [mosaic_gpu.struct((spec.rows, *shape), spec.dtype) for _ in outputs]
        + [mosaic_gpu.struct((spec.blocks, *shape), jnp.float32) for _ in sums],
        [plgpu.SMEM((stages, *shape), spec.dtype) for _ in rows]
        + [plgpu.SMEM(shape, jnp.float32) for _ in (*gains, *sums)]
        + [
            plgpu.Barrier(num_arrivals=len(gains)),
            plgpu.Barrier(num_arrivals=len(rows), num_barriers=stages),
        ],
        *rows.values(),
        *gain_lines,
    )
    count = len(outputs)
    return *results[:count], *(x.sum(0).reshape(-1) for x in results[count:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(spec, x, scale):
    return _norm_forward(spec, x, scale)[0]


def _norm_forward(spec, x, scale):
    (y,) = _call(spec, _norm_body, {"x": x}, {"gain": scale}, ["x"])
    return y, (x, scale)


def _norm_backward(spec, residuals, dy):
    x, scale = residuals
    dx, sums = _call(
        spec, _norm_gradient_body, {"x": x, "dy": dy}, {"gain": scale}, ["dy"], ["gain"]
    )
    return dx, sums.astype(scale.dtype)


_norm.defvjp(_norm_forward, _norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(spec, x, branch, post_scale, next_scale):
    return _step_forward(spec, x, branch, post_scale, next_scale)[0]


def _gains(post_scale, next_scale):
    return {"gain": next_scale} | ({} if post_scale is None else {"post": post_scale})


def _step_forward(spec, x, branch, post_scale, next_scale):
    rows = {"x": x, "branch": branch}
    out = _call(spec, _step_body, rows, _gains(post_scale, next_scale), ["x", "branch"])
    return out, (out[0], branch if spec.post else None, post_scale, next_scale)


def _step_backward(spec, residuals, cotangents):
    stream, branch, post_scale, next_scale = residuals
    rows = {"stream": stream, "d_stream": cotangents[0], "d_following": cotangents[1]}
    gains = _gains(post_scale, next_scale)
    if not spec.post:
        dx, d_gain = _call(spec, _step_gradient_body, rows, gains, ["d_stream"], ["gain"])
        return dx, dx, None, d_gain.astype(next_scale.dtype)
    dx, d_branch, d_gain, d_post = _call(
        spec, _step_gradient_body, rows | {"branch": branch}, gains, ["d_stream", "branch"],
        ["gain", "post"],
    )  # fmt: skip
    return dx, d_branch, d_post.astype(post_scale.dtype), d_gain.astype(next_scale.dtype)


_step.defvjp(_step_forward, _step_backward)
