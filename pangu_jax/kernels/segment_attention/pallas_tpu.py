"""Segment attention as Pallas TPU kernels: layout, lists of blocks, calls, the custom gradient.

Flash attention: the map exists tile by tile in VMEM only. Every query block walks over its list of
key blocks that hold a visible pair (`blocks.py`, by batch row, handed over by scalar prefetch), and
every key block over its list of query blocks; a step past the end of a list computes nothing and
fetches nothing. Query heads read their key-value head in place: k and v are never repeated.

Never run on a TPU so far: checked in interpret mode, lowered, and compiled ahead of time.

Letters: B rows, T queries, S keys, N query heads, K key-value heads, H head width, I query blocks
of P positions, J key blocks of R positions.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pangu_jax.kernels.segment_attention import pallas_tpu_kernels as kernels
from pangu_jax.kernels.segment_attention.blocks import listed, visible_blocks, whole_blocks
from pangu_jax.kernels.segment_attention.pallas_tpu_kernels import Static
from pangu_jax.kernels.segment_attention.reference import ATTENTION_RESIDUALS

_LANES = 128
_VMEM_LIMIT = 64 * 2**20
# int32 entries of a list that scalar memory is trusted with (of 1 MiB on a v5p).
_MAX_LIST = 160 * 1024


def default_block(length: int) -> int:
    """Positions of a block: 512, less for shorter rows. Not measured on a TPU."""
    return min(512, -(-length // _LANES) * _LANES)


def segment_attention_pallas_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    scale: float,
    window: int | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Arguments and value as in `api.segment_attention`; see the contract there.

    Args:
      block_q, block_k: positions of a block, multiples of 128; `default_block` if None.
      interpret: any device, for tests.

    Raises:
      NotImplementedError: for types other than float32 and bfloat16, and for block lists beyond
        scalar memory.
    """
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    static, *arrays = _prepare(q, k, v, ids, scale, window, block_q, block_k)
    return _from_heads(_attention(static, interpret, *arrays), q)


def attend_forward_pallas_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    scale: float,
    window: int | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and values as in `parts.attend_forward`; raises as the function above does."""
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    prepared = _prepare(q, k, v, ids, scale, window, block_q, block_k)
    out, log_sum = _run_forward(prepared, interpret, jnp.float32)
    lse = jnp.moveaxis(log_sum[:, :, 0, : q.shape[1]], 1, 2)
    return _from_heads(out, q), jnp.where(lse > kernels.START, lse, -jnp.inf)


def attend_backward_pallas_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_segment_ids: jax.Array | None = None,
    kv_segment_ids: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    kv_positions: jax.Array | None = None,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    scale: float,
    window: int | None = None,
    block_q: int | None = None,
    block_k: int | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Arguments and values as in `parts.attend_backward`; raises as the function above does."""
    ids = q_segment_ids, kv_segment_ids, q_positions, kv_positions
    prepared = _prepare(q, k, v, ids, scale, window, block_q, block_k)
    full = prepared.q.shape[2]
    # Rows that see nothing are masked; a finite number there keeps the exponential finite too.
    lse = jnp.where(jnp.isneginf(lse), 0, lse)
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    rows = [jnp.moveaxis(_pad(x, full), 2, 1)[:, :, None] for x in (lse, delta)]
    g = _to_heads(d_out.astype(v.dtype), full)
    dq, dk, dv = _run_backward(prepared, interpret, *rows, g, (jnp.float32,) * 3)
    return _from_heads(dq, q), _from_heads(dk, k), _from_heads(dv, v)


class _Prepared(NamedTuple):
    """Padded q [B, N, T, H] and k, v [B, K, S, H], their ids, and the lists of blocks."""

    static: Static
    q: jax.Array
    k: jax.Array
    v: jax.Array
    ids: tuple[jax.Array, jax.Array] | None
    lists: tuple


def _prepare(q, k, v, ids, scale, window, block_q, block_k):
    q_segment_ids, kv_segment_ids, q_positions, kv_positions = ids
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"the TPU kernel takes float32 and bfloat16, not {q.dtype}")
    if q.size == 0 or k.size == 0:
        raise NotImplementedError("an empty batch has no blocks")
    sizes = block_q or default_block(q.shape[1]), block_k or default_block(k.shape[1])
    blocks = -(-q.shape[1] // sizes[0]), -(-k.shape[1] // sizes[1])
    if q_positions is not None and q_segment_ids is None:
        # Only the segment id 0 of what is padded below tells it from real keys.
        q_segment_ids = jnp.ones_like(q_positions)
        kv_segment_ids = jnp.ones_like(kv_positions)
    full = blocks[0] * sizes[0], blocks[1] * sizes[1]
    ids = (
        _pad(q_segment_ids, full[0]),
        _pad(kv_segment_ids, full[1]),
        _pad(q_positions, full[0]),
        _pad(kv_positions, full[1]),
    )
    shape = {"blocks": blocks, "sizes": sizes, "window": window}
    active = visible_blocks(*ids, **shape)
    if active.size > _MAX_LIST:
        raise NotImplementedError(
            f"lists of {active.size} blocks are more than the {_MAX_LIST} that scalar memory is "
            "trusted with: give larger block_q and block_k, or fewer rows"
        )
    static = Static(
        scale=float(scale),
        window=window,
        blocks=blocks,
        sizes=sizes,
        groups=q.shape[2] // k.shape[2],
        segments=ids[0] is not None,
        positions=ids[2] is not None,
        shared_lists=active.shape[0] == 1,
    )
    id_arrays = None
    if static.segments:
        id_arrays = (
            jnp.stack([x for x in (ids[0], ids[2]) if x is not None], axis=1),  # [B, 1 or 2, T]
            jnp.stack([x for x in (ids[1], ids[3]) if x is not None], axis=2),  # [B, S, 1 or 2]
        )
    whole = jnp.broadcast_to(whole_blocks(*ids, **shape), active.shape)
    lists = (_flat_lists(active, whole), _flat_lists(active.swapaxes(1, 2), whole.swapaxes(1, 2)))
    return _Prepared(
        static, _to_heads(q, full[0]), _to_heads(k, full[1]), _to_heads(v, full[1]), id_arrays,
        lists,
    )  # fmt: skip


def segment_attention_interpret(*args, **kwargs) -> jax.Array:
    """`segment_attention_pallas_tpu` in interpret mode: any device, for tests."""
    return segment_attention_pallas_tpu(*args, interpret=True, **kwargs)


def _flat_lists(active, whole):
    """Entries 2 * block + whole, and their number per list: 1-D, since scalar memory pads rows."""
    blocks, count = listed(active)
    entries = 2 * blocks + jnp.take_along_axis(whole, jnp.asarray(blocks), axis=-1)
    return entries.astype(jnp.int32).reshape(-1), jnp.asarray(count).reshape(-1)


def _pad(x, length):
    if x is None:
        return None
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2))


def _to_heads(x, length):
    """[B, t, heads, h] -> [B, heads, length, width]: 64 lanes, or a multiple of 128."""
    width = 64 if x.shape[3] <= 64 else -(-x.shape[3] // _LANES) * _LANES
    missing = ((0, 0), (0, 0), (0, length - x.shape[1]), (0, width - x.shape[3]))
    return jnp.pad(jnp.moveaxis(x, 2, 1), missing)


def _from_heads(x, like):
    """The inverse of `_to_heads`, for an array of the shape of `like`."""
    return jnp.moveaxis(x[:, :, : like.shape[1], : like.shape[3]], 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(static, interpret, q, k, v, ids, lists):
    return _forward(static, interpret, q, k, v, ids, lists)[0]


def _call(body, static, interpret, arrays, outputs, scratch, work, by_queries, dims):
    """One kernel over the visible tiles.

    Args:
      body: kernel body.
      static: what is fixed at trace time.
      interpret: interpret mode.
      arrays: name -> (array, kind); kind says by which block an input moves.
      outputs: name -> (shape, dtype, kind).
      scratch: name -> float32 shape.
      work: lists of the walk (see `_flat_lists`), scalar-prefetched.
      by_queries: a query block walks over key blocks, else a key block over query blocks.
      dims: (B, heads of the outer grid).
    """
    s = static

    def spec(shape, kind):
        def index(b, head, outer, visit, blocks, count):
            outers, inners = s.blocks if by_queries else s.blocks[::-1]
            at = (0 if s.shared_lists else b) * outers + outer
            step = visit if by_queries else visit % s.blocks[0]
            # Past the end the last block is named again: nothing is fetched for it.
            last = jnp.maximum(count[at] - 1, 0)
            inner = blocks[at * inners + jnp.minimum(step, last)] // 2
            i, j = (outer, inner) if by_queries else (inner, outer)
            n, kv = (
                (head, head // s.groups)
                if by_queries
                else (head * s.groups + visit // s.blocks[0], head)
            )
            return {
                "query": (b, n, i, 0),
                "query_row": (b, n, 0, i),
                "key": (b, kv, j, 0),
                "query_ids": (b, 0, i),
                "key_ids": (b, j, 0),
            }[kind]

        size = {
            "query": (1, 1, s.sizes[0], shape[-1]),
            "query_row": (1, 1, 1, s.sizes[0]),
            "key": (1, 1, s.sizes[1], shape[-1]),
            "query_ids": (1, shape[1], s.sizes[0]),
            "key_ids": (1, s.sizes[1], shape[-1]),
        }[kind]
        return pl.BlockSpec(size, index)

    names = ("list", "count", *arrays, *outputs, *scratch)
    visits = s.blocks[1] if by_queries else s.groups * s.blocks[0]
    call = pl.pallas_call(
        functools.partial(body, s, names),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(*dims, s.blocks[0 if by_queries else 1], visits),
            in_specs=[spec(array.shape, kind) for array, kind in arrays.values()],
            out_specs=[spec(shape, kind) for shape, _, kind in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_VMEM_LIMIT,
        ),
        interpret=interpret,
        name=f"segment_attention_{body.__name__}",
    )
    results = call(*work, *(array for array, _ in arrays.values()))
    return dict(zip(outputs, results, strict=True))


def _inputs(q, k, v, ids):
    arrays = {"q": (q, "query"), "k": (k, "key"), "v": (v, "key")}
    if ids is not None:
        arrays |= {"q_ids": (ids[0], "query_ids"), "k_ids": (ids[1], "key_ids")}
    return arrays


def _run_forward(prepared, interpret, dtype):
    """(out [B, N, T, H] of type `dtype`, log-sums float32 [B, N, 1, T], START if nothing is
    seen)."""
    static, q, k, v, ids, lists = prepared
    batch, heads, queries, width = q.shape
    size = static.sizes[0]
    result = _call(
        kernels.forward_kernel, static, interpret, _inputs(q, k, v, ids),
        {
            'out': (q.shape, dtype, 'query'),
            'log_sum': ((batch, heads, 1, queries), jnp.float32, 'query_row'),
        },
        {'top': (1, size), 'total': (1, size), 'sum': (width, size)},
        lists[0], by_queries=True, dims=(batch, heads),
    )  # fmt: skip
    return result["out"], result["log_sum"]


def _run_backward(prepared, interpret, log_sum, delta, g, types):
    """(dq, dk, dv) of the given types; delta: row sums of g * out, of the shape of log_sum."""
    static, q, k, v, ids, lists = prepared
    arrays = _inputs(q, k, v, ids) | {
        "g": (g, "query"), "log_sum": (log_sum, "query_row"), "delta": (delta, "query_row"),
    }  # fmt: skip
    batch, width = q.shape[0], q.shape[3]
    rows = _call(
        kernels.query_gradient_kernel, static, interpret, arrays,
        {'dq': (q.shape, types[0], 'query')}, {'sum': (static.sizes[0], width)},
        lists[0], by_queries=True, dims=(batch, q.shape[1]),
    )  # fmt: skip
    columns = _call(
        kernels.key_gradient_kernel, static, interpret, arrays,
        {'dk': (k.shape, types[1], 'key'), 'dv': (v.shape, types[2], 'key')},
        {name: (static.sizes[1], width) for name in ('sum_k', 'sum_v')},
        lists[1], by_queries=False, dims=(batch, k.shape[1]),
    )  # fmt: skip
    return rows["dq"], columns["dk"], columns["dv"]


def _forward(static, interpret, *arrays):
    prepared = _Prepared(static, *arrays)
    out, log_sum = checkpoint_name(
        _run_forward(prepared, interpret, prepared.v.dtype), ATTENTION_RESIDUALS
    )
    return out, (arrays, out, log_sum)


def _backward(static, interpret, residuals, g):
    arrays, out, log_sum = residuals
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)[:, :, None]
    types = tuple(x.dtype for x in arrays[:3])
    prepared = _Prepared(static, *arrays)
    return *_run_backward(prepared, interpret, log_sum, delta, g, types), None, None


_attention.defvjp(_forward, _backward)
