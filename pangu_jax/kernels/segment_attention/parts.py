"""Segment attention over a part of the keys, to be joined with other parts by the caller.

A ring over devices sees the keys shard by shard. `attend_forward` gives the result over one shard
with the log-sum that is needed to join shards; `attend_backward` gives the gradients that one shard
of the keys takes part in, from the result and the log-sum over all of them. Neither is
differentiable by JAX: they are what a `custom_vjp` is made of.

Contract for an implementation: functions with the arguments of the two below less `implementation`,
else as in `api`.

Letters: B rows, T queries, S keys, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from pangu_jax.kernels import implementation as implementation_lib
from pangu_jax.kernels.segment_attention.api import check_arguments


class _Parts(NamedTuple):
    forward: Callable
    backward: Callable


def _xla():
    from pangu_jax.kernels.segment_attention import xla

    return _Parts(xla.attend_forward_xla, xla.attend_backward_xla)


def _pallas_tpu():
    from pangu_jax.kernels.segment_attention import pallas_tpu

    return _Parts(pallas_tpu.attend_forward_pallas_tpu, pallas_tpu.attend_backward_pallas_tpu)


def _interpret():
    return _Parts(*(functools.partial(part, interpret=True) for part in _pallas_tpu()))


def _pallas_gpu():
    try:
        from pangu_jax.kernels.segment_attention import pallas_gpu
    except ImportError as error:
        raise NotImplementedError(f"its module cannot be imported here: {error}") from error
    return _Parts(pallas_gpu.attend_forward_pallas_gpu, pallas_gpu.attend_backward_pallas_gpu)


_TABLE = {
    "xla": _xla,
    "pallas_tpu": _pallas_tpu,
    "pallas_gpu": _pallas_gpu,
    "interpret": _interpret,
}
# What `segment_attention` knows beyond these, and why it has no parts.
_WHOLE_ONLY = {
    "dense": "it forms the whole map, which parts are there to avoid",
    "cudnn": "the function of JAX that reaches it takes no positions and no log-sums",
    "splash": "it takes no positions, and no log-sums in its backward pass",
}


def attend_forward(
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
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Attention over these keys alone, and how much weight they hold.

    Args:
      all but `implementation`: as in `api.segment_attention`.
      implementation: 'auto', 'xla', 'pallas_tpu', 'pallas_gpu' or 'interpret'.

    Returns:
      out: [B, T, N, H], zero for queries that see none of these keys.
      lse: [B, T, N], log of the sum of exp(logit) over the visible keys, -inf if there are none.
      Both float32 (float64 for float64 inputs).

    Raises:
      ValueError, ImplementationUnavailableError: as in `api.segment_attention`.

    Two parts join as sum_i exp(lse_i - lse) out_i with lse = logaddexp_i lse_i: the running softmax
    of FlashAttention (arXiv 2205.14135) between shards, as in Ring Attention (arXiv 2310.01889).
    """
    ids = _ids(q_segment_ids, kv_segment_ids, q_positions, kv_positions)
    check_arguments(q, k, v, *ids.values(), window)
    arguments = {"scale": float(scale), "window": window, **ids}
    return _dispatch("forward", implementation, q, k, v, **arguments)


def attend_backward(
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
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What these keys add to the gradients of attention over all keys.

    Args:
      all but the following: as in `attend_forward`.
      out, lse: [B, T, N, H] and [B, T, N], joined over all parts; out of any floating type.
      d_out: [B, T, N, H], cotangent of the joined result, of the type of v.

    Returns:
      (dq, dk, dv) with the shapes of q, k and v, float32 (float64 for float64 inputs). dk and dv
      are complete for these queries, dq is to be summed over the parts.

    Raises:
      ValueError, ImplementationUnavailableError: as in `api.segment_attention`.
    """
    ids = _ids(q_segment_ids, kv_segment_ids, q_positions, kv_positions)
    check_arguments(q, k, v, *ids.values(), window)
    for name, x, shape in (
        ("out", out, q.shape),
        ("d_out", d_out, q.shape),
        ("lse", lse, q.shape[:3]),
    ):
        if x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape}; {shape} is needed to fit q.")
    results = {"out": out, "lse": lse, "d_out": d_out}
    arguments = {"scale": float(scale), "window": window, **ids, **results}
    return _dispatch("backward", implementation, q, k, v, **arguments)


def _ids(q_segment_ids, kv_segment_ids, q_positions, kv_positions):
    return {
        "q_segment_ids": q_segment_ids,
        "kv_segment_ids": kv_segment_ids,
        "q_positions": q_positions,
        "kv_positions": kv_positions,
    }


def _dispatch(direction, implementation, *args, **kwargs):
    if implementation in _WHOLE_ONLY:
        raise implementation_lib.ImplementationUnavailableError(
            f"implementation={implementation!r} cannot attend to keys in parts "
            f"({_WHOLE_ONLY[implementation]}). Use implementation='auto' or 'xla'."
        )
    table = {
        name: lambda load=load: getattr(load(), direction)
        for name, load in _TABLE.items()
        # `auto` leaves the kernels alone here: none was measured in parts.
        if implementation != "auto" or name == "xla"
    }
    with jax.named_scope(f"segment_attention_{direction}"):
        return implementation_lib.dispatch(
            "segment_attention in parts", table, implementation, *args, **kwargs
        )
