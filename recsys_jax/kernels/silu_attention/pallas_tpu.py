"""SiLU attention as Pallas TPU kernels: layout, block ranges, calls and the custom gradient.

Nothing of size B x N x N is ever in main memory; the residuals are the inputs. Tiles that
causality or the segments make empty are neither computed nor fetched.

Never run on a TPU so far: checked in interpret mode, lowered, and compiled ahead of time.

Letters: B batch, N positions, H heads, K width of q and k, D width of v, P and T table entries.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from recsys_jax.kernels.silu_attention import pallas_tpu_kernels as kernels
from recsys_jax.kernels.silu_attention.buckets import next_thresholds
from recsys_jax.kernels.silu_attention.output import SiluAttentionOutput
from recsys_jax.kernels.silu_attention.pallas_tpu_kernels import LANES, Lanes, Static
from recsys_jax.kernels.silu_attention.position import extend

_VMEM_LIMIT = 64 * 2**20
_MAX_LANES = 2048


def lane_groups(heads: int, width: int) -> Lanes:
    """Lays heads of the given width into groups of at most 128 lanes (or one wide head each)."""
    if width > LANES:
        return Lanes(heads, width, 1, heads, -(-width // LANES) * LANES)
    per_group = min(heads, LANES // width)
    groups = -(-heads // per_group)
    return Lanes(heads, width, per_group, groups, per_group * width if groups == 1 else LANES)


def _to_lanes(x, lanes: Lanes, n):
    """[B, N, H, W] -> [B, n, groups * width], zeros in the gaps."""
    batch = x.shape[0]
    x = jnp.pad(
        x,
        ((0, 0), (0, n - x.shape[1]), (0, lanes.groups * lanes.per_group - lanes.heads), (0, 0)),
    )
    x = x.reshape(batch, n, lanes.groups, lanes.per_group * lanes.head_width)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, lanes.width - x.shape[-1])))
    return x.reshape(batch, n, lanes.groups * lanes.width)


def _from_lanes(x, lanes: Lanes, n):
    batch = x.shape[0]
    x = x[:, :n].reshape(batch, n, lanes.groups, lanes.width)
    x = x[..., : lanes.per_group * lanes.head_width]
    x = x.reshape(batch, n, lanes.groups * lanes.per_group, lanes.head_width)
    return x[:, :, : lanes.heads]


def block_ranges(segment_ids: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """First key block of every query block and last query block of every key block.

    Args:
      segment_ids: int32 [B, n], n a multiple of `block`.
      block: tile edge.

    Returns:
      first_key and last_query, int32 [B, n / block]. A block that meets no other (all padding)
      has first_key = n / block and last_query = -1.
    """
    tiles = segment_ids.reshape(segment_ids.shape[0], -1, block)
    high = tiles.max(-1)
    low = jnp.where(tiles > 0, tiles, jnp.iinfo(jnp.int32).max).min(-1)
    count = tiles.shape[1]
    at = jnp.arange(count)
    meet = (high[:, :, None] >= low[:, None]) & (low[:, :, None] <= high[:, None])
    meet = meet & (at[None, :] <= at[:, None])  # [B, i, j]
    first_key = jnp.where(meet, at[None, None, :], count).min(2)
    last_query = jnp.where(meet, at[None, :, None], -1).max(1)
    return first_key.astype(jnp.int32), last_query.astype(jnp.int32)


def default_block(n: int, heads: int) -> int:
    """Tile edge: 256 from 1,024 positions on for up to two heads, else 128.

    The heads are unrolled inside a tile: with large tiles and many heads the program, and the
    time to compile it, grow past use.
    """
    return 256 if n >= 1024 and heads <= 2 else 128


def silu_attention_pallas_tpu(
    q: jax.Array | None,
    k: jax.Array | None,
    v: jax.Array,
    *,
    segment_ids: jax.Array,
    position_weights: jax.Array | None = None,
    time_weights: jax.Array | None = None,
    timestamps: jax.Array | None = None,
    query_times: jax.Array | None = None,
    scale: float,
    bias: str = "separate",
    packed: bool = False,
    block: int | None = None,
    interpret: bool = False,
) -> SiluAttentionOutput:
    """Arguments and value as in `api.silu_attention`; see the contract there.

    Raises:
      NotImplementedError: for float64, or for more lanes than the kernels hold in VMEM.
    """
    batch, n, heads, width = v.shape
    if v.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"the TPU kernel takes float32 and bfloat16, not {v.dtype}")
    block = block or default_block(n, heads)
    v_lanes = lane_groups(heads, width)
    q_lanes = None if q is None else lane_groups(heads, q.shape[-1])
    for lanes in (v_lanes, q_lanes):
        if lanes is not None and lanes.groups * lanes.width > _MAX_LANES:
            raise NotImplementedError(
                f"{heads} heads of width {lanes.head_width} need more than the {_MAX_LANES} lanes "
                "that the TPU kernel keeps in fast memory"
            )
    blocks = -(-n // block)
    static = Static(
        block=block,
        blocks=blocks,
        heads=heads,
        scale=scale,
        semantic=q is not None,
        added=bias == "added",
        packed=packed,
        time=time_weights is not None,
        position=position_weights is not None,
        top_bucket=0 if time_weights is None else len(next_thresholds(time_weights.size - 1)) - 1,
        q_lanes=q_lanes,
        v_lanes=v_lanes,
    )
    full = blocks * block

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, full - n)))

    segments = pad(segment_ids)
    ranges = block_ranges(segments, block)
    clocks = None
    if static.time or packed:
        zeros = jnp.zeros_like(segments)
        query_clock = zeros if query_times is None else pad(query_times)
        key_clock = zeros if timestamps is None else pad(timestamps)
        clocks = (
            jnp.stack([query_clock, segments], axis=2),  # [B, n, 2]
            jnp.stack([key_clock, segments], axis=1),  # [B, 2, n]
        )
    table = lines = None
    if static.time:
        table = time_weights[: static.top_bucket + 1].astype(jnp.float32)
        table = jnp.pad(table, (0, LANES - table.size))[None]  # [1, 128]
    if static.position:
        # lines[d, 0, (c - r) mod 2 block] = weight at distance d * block + r - c.
        offset = jnp.arange(2 * block)
        offset = jnp.where(offset < block, -offset, 2 * block - offset)
        distance = jnp.clip(jnp.arange(blocks)[:, None] * block + offset[None], 0, full - 1)
        weights = extend(position_weights, full).astype(jnp.float32)
        lines = weights[distance][:, None]  # [blocks, 1, 2 * block]
    out = _attention(
        static,
        interpret,
        None if q is None else _to_lanes(q, q_lanes, full),
        None if k is None else _to_lanes(k, q_lanes, full),
        _to_lanes(v, v_lanes, full),
        lines,
        table,
        clocks,
        ranges,
    )
    return SiluAttentionOutput(*(None if x is None else _from_lanes(x, v_lanes, n) for x in out))


def silu_attention_interpret(*args, **kwargs) -> SiluAttentionOutput:
    """`silu_attention_pallas_tpu` in interpret mode: any device, for tests."""
    return silu_attention_pallas_tpu(*args, interpret=True, **kwargs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(static, interpret, q, k, v, lines, table, clocks, ranges):
    return _forward(static, interpret, q, k, v, lines, table, clocks, ranges)[0]


def _call(body, static, interpret, arrays, outputs, scratch, ranges, by_rows, carries):
    """One kernel over all tiles.

    Args:
      body: kernel body.
      static: what is fixed at trace time.
      interpret: interpret mode.
      arrays: name -> (array, kind); kind says by which block an input moves.
      outputs: name -> (shape, dtype, kind).
      scratch: name -> float32 shape.
      ranges: (name, int32 [B, blocks]) of the scalar-prefetched block range.
      by_rows: grid (b, i, j) with j innermost, else (b, j, i).
      carries: an output is summed over the middle grid axis too.
    """
    s = static
    range_name, bounds = ranges

    def spec(shape, kind):
        def index(b, outer, inner, bound):
            # Outside the range the nearest block inside is named: nothing is fetched for it.
            if by_rows:
                i, j = outer, jnp.minimum(jnp.maximum(inner, bound[b, outer]), outer)
            else:
                i, j = jnp.maximum(jnp.minimum(inner, bound[b, outer]), outer), outer
            return {
                "query": (b, i, 0),
                "key": (b, j, 0),
                "key_lanes": (b, 0, j),
                "distance": (i - j, 0, 0),
                "table": (0, 0),
                "row": (b, 0, 0),
            }[kind]

        size = {
            "query": (1, s.block, shape[-1]),
            "key": (1, s.block, shape[-1]),
            "key_lanes": (1, shape[1], s.block) if len(shape) == 3 else None,
            "distance": (1, *shape[1:]),
            "table": shape,
            "row": (1, *shape[1:]),
        }[kind]
        return pl.BlockSpec(size, index)

    names = (range_name, *arrays, *outputs, *(f"sum_{name}" for name in scratch))
    call = pl.pallas_call(
        functools.partial(body, s, names),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(bounds.shape[0], s.blocks, s.blocks),
            in_specs=[spec(array.shape, kind) for array, kind in arrays.values()],
            out_specs=[spec(shape, kind) for shape, _, kind in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary" if carries else "parallel", "arbitrary"),
            vmem_limit_bytes=_VMEM_LIMIT,
        ),
        interpret=interpret,
        name=f"silu_attention_{body.__name__}",
    )
    results = call(bounds, *(array for array, _ in arrays.values()))
    return dict(zip(outputs, results, strict=True))


def _inputs(static, q, k, v, lines, table, clocks):
    arrays = {}
    if static.semantic:
        arrays["q"] = (q, "query")
        arrays["k"] = (k, "key")
    arrays["v"] = (v, "key")
    if clocks is not None:
        arrays["of_query"] = (clocks[0], "query")
        arrays["of_key"] = (clocks[1], "key_lanes")
    if static.time:
        bounds = next_thresholds(static.top_bucket)
        thresholds = jnp.pad(jnp.asarray(bounds), (0, LANES - bounds.size))[None]
        arrays["thresholds"] = (thresholds, "table")
        arrays["time_table"] = (table, "table")
    if static.position:
        arrays["position_lines"] = (lines, "distance")
    return arrays


def _forward(static, interpret, q, k, v, lines, table, clocks, ranges):
    on = {
        "semantic": static.semantic,
        "time": static.time and not static.added,
        "position": static.position and not static.added,
    }
    channels = [c for c, is_on in on.items() if is_on]
    tile = (static.block, v.shape[-1])
    result = _call(
        kernels.forward_kernel,
        static,
        interpret,
        _inputs(static, q, k, v, lines, table, clocks),
        {f"out_{c}": (v.shape, v.dtype, "query") for c in channels},
        dict.fromkeys(channels, tile),
        ("first_key", ranges[0]),
        by_rows=True,
        carries=False,
    )
    out = tuple(result.get(f"out_{c}") for c in on)
    return out, (q, k, v, lines, table, clocks, ranges)


def _backward(static, interpret, residuals, cotangents):
    q, k, v, lines, table, clocks, ranges = residuals
    s = static
    arrays = _inputs(s, q, k, v, lines, table, clocks)
    for name, g in zip(("semantic", "time", "position"), cotangents, strict=True):
        if g is not None:
            arrays[f"g_{name}"] = (g, "query")
    call = functools.partial(_call, static=s, interpret=interpret, arrays=arrays)
    batch = v.shape[0]
    outputs, scratch = {}, {}
    if s.semantic:
        outputs["dq"] = (q.shape, q.dtype, "query")
        scratch["dq"] = (s.block, q.shape[-1])
    if s.time:
        outputs["d_time"] = ((batch, 1, LANES), jnp.float32, "row")
    if s.position:
        outputs["d_position"] = ((batch, s.blocks, 2 * s.block), jnp.float32, "row")
    rows = {}
    if outputs:
        rows = call(
            kernels.rows_kernel,
            outputs=outputs,
            scratch=scratch,
            ranges=("first_key", ranges[0]),
            by_rows=True,
            carries=s.time or s.position,
        )
    outputs, scratch = {}, {}
    if s.semantic:
        outputs["dk"] = (k.shape, k.dtype, "key")
        scratch["dk"] = (s.block, k.shape[-1])
    outputs["dv"] = (v.shape, v.dtype, "key")
    scratch["dv"] = (s.block, v.shape[-1])
    columns = call(
        kernels.columns_kernel,
        outputs=outputs,
        scratch=scratch,
        ranges=("last_query", ranges[1]),
        by_rows=False,
        carries=False,
    )
    return (
        rows.get("dq"),
        columns.get("dk"),
        columns["dv"],
        rows["d_position"].sum(0)[:, None] if s.position else None,
        rows["d_time"].sum(0) if s.time else None,
        None,
        None,
    )


_attention.defvjp(_forward, _backward)
