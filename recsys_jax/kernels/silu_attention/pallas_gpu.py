"""SiLU attention for NVIDIA Hopper GPUs through Pallas Mosaic GPU.

Status: run on an H100 against the float32 reference; speed in docs/kernels.md.

Serves bfloat16 and float16 with head widths up to 128 on compute capability 9.x, and raises
NotImplementedError otherwise (float32 would need tf32 WGMMA operands; not attempted).
Accumulation is float32; the SiLU, time and position maps are rounded to the input type before
they multiply v, as in flash attention.

Source of the tiling: specification sections 5.3 and 5.4.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.kernels import mosaic_gpu
from recsys_jax.kernels.silu_attention import pallas_gpu_backward as backward_kernels
from recsys_jax.kernels.silu_attention import pallas_gpu_common as common
from recsys_jax.kernels.silu_attention import pallas_gpu_forward as forward_kernel
from recsys_jax.kernels.silu_attention import pallas_gpu_position as position_kernel
from recsys_jax.kernels.silu_attention import pallas_gpu_prepare as prepare
from recsys_jax.kernels.silu_attention.output import SiluAttentionOutput


def silu_attention_pallas_gpu(
    q: jax.Array | None,
    k: jax.Array | None,
    v: jax.Array,
    *,
    segment_ids: jax.Array,
    position_weights: jax.Array | None,
    time_weights: jax.Array | None,
    timestamps: jax.Array | None,
    query_times: jax.Array | None,
    scale: float,
    bias: str,
    packed: bool,
    lookup: str = "auto",
    interpret: bool = False,
) -> SiluAttentionOutput:
    """`silu_attention` (see api.py) on one Hopper GPU; differentiable in q, k, v and both tables.

    Args: as in `silu_attention`, checked there.
      packed: without it pairs are masked by causality alone (see pallas_gpu_common.visible); tiles
        are skipped by segment in any case.
      lookup: 'auto', 'select' or 'gather', how the time table is read in the kernel (see
        pallas_gpu_common.time_bias); meant to agree exactly. Interpret mode replaces the
        shared-memory reads of 'gather' by jnp.take.
      interpret: run on CPU in Mosaic GPU interpret mode (tests only; also takes float32).

    Raises:
      NotImplementedError: for types, head widths or devices the kernel does not serve.
    """
    mosaic_gpu.check_supported(v, interpret)
    spec = common.Spec(
        added=bias == "added",
        semantic=q is not None,
        time=time_weights is not None,
        position=position_weights is not None,
        scale=float(scale),
        dtype=np.dtype(v.dtype),
        batch=v.shape[0],
        tiles=-(-v.shape[1] // mosaic_gpu.TILE),
        heads=v.shape[2],
        width_qk=0 if q is None else mosaic_gpu.pad_width(q.shape[3]),
        width_v=mosaic_gpu.pad_width(v.shape[3]),
        num_buckets=0 if time_weights is None else time_weights.shape[0] - 1,
        lookup=lookup,
        packed=packed,
        interpret=interpret,
    )
    tensors = {"v": v} if q is None else {"q": q, "k": k, "v": v}
    tables = {}
    if spec.time:
        tables["time"] = time_weights
    if spec.position:
        tables["position"] = position_weights
    fixed = (segment_ids, timestamps, query_times)
    return SiluAttentionOutput(*_attention(spec, tensors, tables, fixed))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec, tensors, tables, fixed):
    out, _ = _attention_forward(spec, tensors, tables, fixed)
    return out


def _padded(spec, tensors):
    widths = {"q": spec.width_qk, "k": spec.width_qk, "v": spec.width_v}
    padded = {n: mosaic_gpu.pad_heads(x, spec.tiles, widths[n]) for n, x in tensors.items()}
    return padded.get("q"), padded.get("k"), padded["v"]


def _unpad(x, like):
    """[B, H, N, W] -> the shape and type of `like`, [B, n, H, w]."""
    n, width = like.shape[1], like.shape[3]
    return jnp.moveaxis(x[:, :, :n, :width], 1, 2).astype(like.dtype)


def _prepared(spec, tables, fixed):
    prepared = prepare.Prepared(spec, *fixed)
    table = prepare.table_weights(tables["time"]) if spec.time else None
    toeplitz = prepare.position_tiles(tables["position"], spec.tiles) if spec.position else None
    return prepared, table, toeplitz


def _attention_forward(spec, tensors, tables, fixed):
    prepared, table, toeplitz = _prepared(spec, tables, fixed)
    outs = forward_kernel.forward(spec, prepared, *_padded(spec, tensors), table, toeplitz)
    outs = [_unpad(x, tensors["v"]) for x in outs]
    separate = not spec.added
    on = (spec.semantic, spec.time and separate, spec.position and separate)
    return tuple(outs.pop(0) if x else None for x in on), (tensors, tables, fixed)


def _attention_backward(spec, residuals, cotangents):
    tensors, tables, fixed = residuals
    prepared, table, toeplitz = _prepared(spec, tables, fixed)
    q, k, v = _padded(spec, tensors)
    g_sem, g_time, g_pos = (
        None if g is None else mosaic_gpu.pad_heads(g.astype(spec.dtype), spec.tiles, spec.width_v)
        for g in cotangents
    )
    gradients, table_gradients = {}, {}
    if spec.semantic or spec.time:
        rows = backward_kernels.row_gradients(
            _without_position(spec), prepared, q, k, v, g_sem, g_time, table, toeplitz
        )
        if spec.semantic:
            gradients["q"] = _unpad(rows[0], tensors["q"])
        if spec.time:
            size = tables["time"].shape[0]
            dw = jnp.pad(rows[1], (0, max(0, size - rows[1].shape[0])))[:size]
            table_gradients["time"] = dw.astype(tables["time"].dtype)
    transposed = None if toeplitz is None else jnp.swapaxes(toeplitz, 1, 2)
    dk, dv = backward_kernels.key_gradients(
        spec, prepared, q, k, v, g_sem, g_time, g_pos, table, transposed
    )
    gradients["v"] = _unpad(dv, tensors["v"])
    if spec.semantic:
        gradients["k"] = _unpad(dk, tensors["k"])
    if spec.position:
        weights = tables["position"]
        dw = position_kernel.position_gradient(
            spec, prepared, q, k, v, g_sem, g_pos, table, toeplitz, weights.shape[0]
        )
        table_gradients["position"] = dw.astype(weights.dtype)
    return gradients, table_gradients, (None, None, None)


def _without_position(spec):
    """The row kernel needs the position bias only inside the SiLU."""
    return spec if spec.added else common.dataclasses.replace(spec, position=False)


_attention.defvjp(_attention_forward, _attention_backward)
