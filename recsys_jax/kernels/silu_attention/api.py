"""Public entry of SiLU attention: checks, masking, choice of implementation.

Contract for an implementation module: a function with the arguments of `silu_attention` less
`implementation`. It may rely on checked arguments and on zeros in the padded rows of q, k, v; its
own output may hold anything finite in padded rows (zeroed here, so their cotangents arrive as
zeros). With bias='separate' and packed=False it never sees position weights: that channel is a
plain matrix product, done here. It differentiates with respect to q, k, v and both tables, and
raises ``NotImplementedError('why')``, while tracing, for what it cannot do.

Letters: B batch, N positions, H heads, K width of q and k, D width of v, P and T table entries.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pangu_jax.kernels import implementation as implementation_lib
from pangu_jax.kernels import measured
from recsys_jax.kernels.silu_attention.output import SiluAttentionOutput
from recsys_jax.kernels.silu_attention.position import position_channel

BIAS_MODES = ("separate", "added")


def _xla():
    from recsys_jax.kernels.silu_attention.xla import silu_attention_xla

    return silu_attention_xla


def _pallas_tpu():
    from recsys_jax.kernels.silu_attention.pallas_tpu import silu_attention_pallas_tpu

    return silu_attention_pallas_tpu


def _interpret():
    from recsys_jax.kernels.silu_attention.pallas_tpu import silu_attention_interpret

    return silu_attention_interpret


def _pallas_gpu():
    try:
        from recsys_jax.kernels.silu_attention.pallas_gpu import silu_attention_pallas_gpu
    except ImportError as error:
        raise NotImplementedError(f"its module cannot be imported here: {error}") from error
    return silu_attention_pallas_gpu


_TABLE = {
    "xla": _xla,
    "pallas_tpu": _pallas_tpu,
    "pallas_gpu": _pallas_gpu,
    "interpret": _interpret,
}


# What `auto` may take beside XLA; variants are the values of `bias`, sizes the positions N. The
# numbers behind a rule stand in docs/kernels.md.
MEASURED: tuple[measured.Rule, ...] = (measured.Rule("NVIDIA H100", "pallas_gpu", at_least=200),)


def silu_attention(
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
    implementation: str = "auto",
) -> SiluAttentionOutput:
    """Causal attention with SiLU in place of softmax, and learned time and position weights.

    Position i attends to j iff j <= i and both have the same nonzero segment id; write M for that
    0/1 map, P[i, j] = position_weights[i - j] and T[i, j] = time_weights[bucket(query_times[i] -
    timestamps[j])], with `buckets.time_bucket`.

    * bias='separate' (FuXi-alpha): semantic = (silu(q k^T) * scale * M) v, time = (T * M) v,
      position = (P * M) v.
    * bias='added' (HSTU): semantic = (silu(q k^T + P + T) * scale * M) v, the others None.

    Sums are in float32 (float64 for float64 inputs); outputs have the type of v. Output rows of
    padding are zero, and so are the gradients of padded rows of q, k and v.

    Args:
      q: [B, N, H, K], or None to switch the semantic channel off (bias='separate' only).
      k: [B, N, H, K], or None together with q.
      v: [B, N, H, D].
      segment_ids: int32 [B, N], 0 = padding; equal ids of a row lie side by side.
      position_weights: [P] indexed by distance i - j, or None (channel off). P >= N; with
        packed=True a shorter table is allowed, and distances past its end use its last entry.
      time_weights: [num_buckets + 1], or None (channel off).
      timestamps: int32 [B, N], time of the key event; needed with time_weights.
      query_times: int32 [B, N], time of the query; needed with time_weights. Differences must fit
        in int32.
      scale: constant factor of the SiLU map (the papers' 1/n).
      bias: 'separate' or 'added'.
      packed: False promises at most one segment per row, starting at column 0.
      implementation: 'auto', 'xla', 'pallas_tpu', 'pallas_gpu', or 'interpret' (the TPU kernel
        in interpret mode, for tests).

    Returns:
      SiluAttentionOutput; each channel [B, N, H, D] or None.

    Raises:
      ValueError: for shapes, types or arguments that do not fit together.
      ImplementationUnavailableError: if a demanded implementation cannot serve the call.

    Source: FuXi-alpha (arXiv 2502.03036) section 3 and its released code; HSTU (arXiv
    2402.17152); specification sections 1.2 and 5.3. Details in docs/kernels.md.
    """
    _check(q, k, v, segment_ids, position_weights, time_weights, timestamps, query_times,
           bias, packed)  # fmt: skip
    implementation_lib.candidates(implementation)  # An unknown name fails even if nothing runs.
    if time_weights is None:
        timestamps = query_times = None
    valid = (segment_ids > 0)[:, :, None, None]

    def clean(x):
        return None if x is None else jnp.where(valid, x, 0)

    q, k, v = clean(q), clean(k), clean(v)
    position = None
    if bias == "separate" and not packed and position_weights is not None:
        position = position_channel(v, position_weights)
        position_weights = None
    out = SiluAttentionOutput(None, None, None)
    if q is not None or time_weights is not None or position_weights is not None:
        table = _TABLE
        if implementation == "auto":
            table = measured.allowed(_TABLE, MEASURED, v.shape[1], bias)
        out = implementation_lib.dispatch(
            'silu_attention', table, implementation, q, k, v,
            segment_ids=segment_ids, position_weights=position_weights,
            time_weights=time_weights, timestamps=timestamps, query_times=query_times,
            scale=float(scale), bias=bias, packed=packed,
        )  # fmt: skip
    if position is not None:
        out = out._replace(position=position)
    return SiluAttentionOutput(*map(clean, out))


def _check(q, k, v, segment_ids, position_weights, time_weights, timestamps, query_times,
           bias, packed):  # fmt: skip
    if bias not in BIAS_MODES:
        raise ValueError(f"bias={bias!r} is unknown; allowed are 'separate' and 'added'.")
    if v.ndim != 4:
        raise ValueError(f"v has shape {v.shape}; [batch, positions, heads, width] is needed.")
    rows, n, heads, _ = v.shape
    if (q is None) != (k is None):
        raise ValueError("q and k must both be given, or both be None (semantic channel off).")
    if q is None and bias == "added":
        raise ValueError("bias='added' needs q and k; only bias='separate' can switch them off.")
    if q is None and position_weights is None and time_weights is None:
        raise ValueError("All channels are off: give q and k, position_weights or time_weights.")
    if q is not None:
        if q.shape != k.shape or q.ndim != 4 or q.shape[:3] != (rows, n, heads):
            raise ValueError(
                f"q has shape {q.shape} and k {k.shape}; both must be "
                f"[{rows}, {n}, {heads}, width] to fit v of shape {v.shape}."
            )
        if not q.dtype == k.dtype == v.dtype:
            raise ValueError(
                f"q, k and v have types {q.dtype}, {k.dtype} and {v.dtype}; they must be equal."
            )
    if not jnp.issubdtype(v.dtype, jnp.floating):
        raise ValueError(f"v has type {v.dtype}; a floating type is needed.")
    _check_ids("segment_ids", segment_ids, (rows, n))
    if position_weights is not None:
        if position_weights.ndim != 1 or position_weights.shape[0] < (1 if packed else n):
            raise ValueError(
                f"position_weights has shape {position_weights.shape}; one entry per distance "
                f"0..{n - 1} is needed ([{n}] or longer)."
            )
    if time_weights is not None:
        if time_weights.ndim != 1 or time_weights.shape[0] < 1:
            raise ValueError(
                f"time_weights has shape {time_weights.shape}; [num_buckets + 1] is needed."
            )
        if timestamps is None or query_times is None:
            raise ValueError("time_weights needs timestamps and query_times as well.")
        _check_ids("timestamps", timestamps, (rows, n))
        _check_ids("query_times", query_times, (rows, n))


def _check_ids(name, x, shape):
    if x.shape != shape or x.dtype != jnp.int32:
        raise ValueError(f"{name} is {x.dtype}{list(x.shape)}; int32{list(shape)} is needed.")
