"""Public entry of segment attention: checks, choice of implementation.

Contract for an implementation module: a function with the arguments of `segment_attention` less
`implementation`, and with the same None's: segment ids None (for both sides) means one document
per row without padding, positions None (for both sides, T = S) means that a token's place in its
row orders it. It may rely on checked arguments. Rows of padding come out as zeros and get zero
gradients. It differentiates with respect to q, k and v, and raises ``NotImplementedError('why')``,
while tracing, for what it cannot do.

Letters: B rows, T queries, S keys, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pangu_jax.kernels import implementation as implementation_lib
from pangu_jax.kernels import measured


def _xla():
    from pangu_jax.kernels.segment_attention.xla_short import segment_attention_on_xla

    return segment_attention_on_xla


def _dense():
    from pangu_jax.kernels.segment_attention.dense import segment_attention_dense

    return segment_attention_dense


def _cudnn():
    from pangu_jax.kernels.segment_attention.cudnn import segment_attention_cudnn

    return segment_attention_cudnn


def _pallas_tpu():
    from pangu_jax.kernels.segment_attention.pallas_tpu import segment_attention_pallas_tpu

    return segment_attention_pallas_tpu


def _pallas_gpu():
    try:
        from pangu_jax.kernels.segment_attention.pallas_gpu import segment_attention_pallas_gpu
    except ImportError as error:
        raise NotImplementedError(f"its module cannot be imported here: {error}") from error
    return segment_attention_pallas_gpu


def _interpret():
    from pangu_jax.kernels.segment_attention.pallas_tpu import segment_attention_interpret

    return segment_attention_interpret


def _splash():
    from pangu_jax.kernels.segment_attention.splash import segment_attention_splash

    return segment_attention_splash


_TABLE = {
    "xla": _xla,
    "pallas_tpu": _pallas_tpu,
    "pallas_gpu": _pallas_gpu,
    "interpret": _interpret,
}
# What `auto` may take beside XLA; the variants are rows with segment ids or positions and rows of
# one document, sizes the queries T. The numbers behind a rule stand in docs/kernels.md.
MEASURED: tuple[measured.Rule, ...] = (
    measured.Rule("NVIDIA H100", "pallas_gpu", at_least=4096, variant="documents"),
    measured.Rule("NVIDIA H100", "cudnn", at_least=4096, variant="one document"),
)
# Choices of this operation alone, beyond `implementation_lib.IMPLEMENTATIONS`.
_OWN = {"dense": _dense, "cudnn": _cudnn, "splash": _splash}


def segment_attention(
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
) -> jax.Array:
    """softmax(scale * q k^T) v over the visible keys.

    Query t sees key s iff both have the same nonzero segment id, and
    0 <= q_position - kv_position (< window). Query head n uses key-value head n // (N / K).
    Softmax state and sums are float32 (float64 for float64 inputs).

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H], K a divisor of N.
      v: [B, S, K, H].
      q_segment_ids, kv_segment_ids: int32 [B, T] and [B, S], 0 = padding; or both None: every
        row is one document.
      q_positions, kv_positions: int32 [B, T] and [B, S], original positions, in any order; or
        both None (then T = S): documents lie in a row in order, so row order decides.
      scale: factor of the products, usually H ** -0.5.
      window: how many latest positions are seen, the query's own included; None for all.
      implementation: 'auto', 'xla' (block-wise, no T x S array), 'dense' (the whole map),
        'cudnn' (jax.nn.dot_product_attention on an NVIDIA GPU; one document per row, no
        positions), 'splash' (the TPU kernel that JAX brings along; no positions), 'pallas_tpu',
        'pallas_gpu', or 'interpret' (our TPU kernels in interpret mode, for tests).

    Returns:
      [B, T, N, H] in the type of v; zero for queries that see nothing.

    Raises:
      ValueError: for shapes, types or arguments that do not fit together.
      ImplementationUnavailableError: if a demanded implementation cannot serve the call.

    Source: Vaswani et al. (arXiv 1706.03762), GQA (arXiv 2305.13245), document reset as in
    Pangu Ultra (arXiv 2504.07866) section 4.3.1.
    """
    check_arguments(q, k, v, q_segment_ids, kv_segment_ids, q_positions, kv_positions, window)
    if implementation == "auto" and _prefers_dense(q):
        implementation = "dense"
    arguments = {
        "q_segment_ids": q_segment_ids,
        "kv_segment_ids": kv_segment_ids,
        "q_positions": q_positions,
        "kv_positions": kv_positions,
        "scale": float(scale),
        "window": window,
    }
    with jax.named_scope("segment_attention"):
        if implementation in _OWN:
            return _demand(implementation, q, k, v, **arguments)
        table = _TABLE
        if implementation == "auto":
            one = q_segment_ids is None and q_positions is None
            variant = "one document" if one else "documents"
            table = measured.allowed(_TABLE | _OWN, MEASURED, q.shape[1], variant)
            if "cudnn" in table:
                try:
                    return _cudnn()(q, k, v, **arguments)
                except NotImplementedError:
                    pass  # XLA serves what cuDNN does not.
        return implementation_lib.dispatch(
            "segment_attention", table, implementation, q, k, v, **arguments
        )


def _prefers_dense(q):
    # A decoding step: one row of the map, nothing to skip or to save. For every longer T that was
    # measured on CPU (32 to 2048) the block-wise form was the faster one.
    return q.shape[1] == 1


def _demand(implementation, *args, **kwargs):
    try:
        return _OWN[implementation]()(*args, **kwargs)
    except NotImplementedError as error:
        raise implementation_lib.ImplementationUnavailableError(
            f"segment_attention cannot run with implementation={implementation!r} ({error}). "
            "Use implementation='auto' or 'xla'."
        ) from error


def check_arguments(q, k, v, q_segment_ids, kv_segment_ids, q_positions, kv_positions, window):
    """Raises ValueError for arguments of `segment_attention` that do not fit together."""
    if q.ndim != 4 or k.ndim != 4:
        raise ValueError(
            f"q has shape {q.shape} and k {k.shape}; [batch, positions, heads, width] is needed."
        )
    rows, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    if k.shape != v.shape or k.shape != (rows, keys, kv_heads, width):
        raise ValueError(
            f"k has shape {k.shape} and v {v.shape}; both must be [{rows}, keys, kv_heads, "
            f"{width}] to fit q of shape {q.shape}."
        )
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads, which is no multiple of the {kv_heads} of k and v.")
    if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(
            f"q, k and v have types {q.dtype}, {k.dtype} and {v.dtype}; one floating type for all "
            "is needed."
        )
    for name, of_q, of_kv in (
        ("segment_ids", q_segment_ids, kv_segment_ids),
        ("positions", q_positions, kv_positions),
    ):
        if (of_q is None) != (of_kv is None):
            raise ValueError(f"q_{name} and kv_{name} must both be given, or both be None.")
        for side, x, shape in (("q", of_q, (rows, queries)), ("kv", of_kv, (rows, keys))):
            if x is not None and (x.shape != shape or x.dtype != jnp.int32):
                raise ValueError(
                    f"{side}_{name} is {x.dtype}{list(x.shape)}; int32{list(shape)} is needed."
                )
    if q_positions is None and queries != keys:
        raise ValueError(
            f"There are {queries} queries and {keys} keys: q_positions and kv_positions are needed."
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, or None.")
