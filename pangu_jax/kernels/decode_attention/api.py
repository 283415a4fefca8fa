"""Public entry of decode attention: checks, choice of implementation.

Contract for an implementation module: a function with the arguments of `decode_attention` less
`implementation`, and with q [B, C, N, H]. It may rely on checked arguments, need not differentiate
(this is for inference), and raises ``NotImplementedError('why')``, while tracing, for what it
cannot do.

Letters: B rows, C queries of a row, N query heads, K key-value heads, H head width, P pages of the
pool, M pages of a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pangu_jax.kernels import implementation as implementation_lib
from pangu_jax.kernels import measured


def _xla():
    from pangu_jax.kernels.decode_attention.xla import decode_attention_xla

    return decode_attention_xla


def _pallas_tpu():
    from pangu_jax.kernels.decode_attention.pallas_tpu import decode_attention_pallas_tpu

    return decode_attention_pallas_tpu


def _pallas_gpu():
    try:
        from pangu_jax.kernels.decode_attention.pallas_gpu import decode_attention_pallas_gpu
    except ImportError as error:
        raise NotImplementedError(f"its module cannot be imported here: {error}") from error
    return decode_attention_pallas_gpu


def _interpret():
    from pangu_jax.kernels.decode_attention.pallas_tpu import decode_attention_interpret

    return decode_attention_interpret


_TABLE = {
    "xla": _xla,
    "pallas_tpu": _pallas_tpu,
    "pallas_gpu": _pallas_gpu,
    "interpret": _interpret,
}
# What `auto` may take beside XLA; sizes are the slots M * page of a row. The numbers behind a rule
# stand in docs/kernels.md; below its size the kernel is ahead too, but takes long to compile.
MEASURED: tuple[measured.Rule, ...] = (measured.Rule("NVIDIA H100", "pallas_gpu", at_least=2048),)
_PAGE_TYPES = (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16)


def decode_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    block_tables: jax.Array,
    lengths: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(scale * q k^T) v of each row's newest positions over its keys, which lie in pages.

    Query c of a row stands at position lengths - C + c and sees the row's keys at positions up to
    its own (and less than `window` before it); a query whose position is negative sees nothing.
    Query head n uses key-value head n // (N / K). The newest keys must have been written before
    (`write_tokens`). Softmax state and sums are float32 (float64 for float64 queries). Slots that
    no query of the row sees may hold anything, NaN too. Inference only: no implementation promises
    gradients.

    Args:
      q: [B, N, H], one query per row; or [B, C, N, H], the row's C newest positions in order.
      k_pages: [P, K, page, H], K a divisor of N; the type may differ from that of q.
      v_pages: [P, K, page, H], type of k_pages.
      block_tables: int32 [B, M], pages of each row in order. All entries must be page ids, those
        past the row's length too (any page, 0 say), which are not read into the result.
      lengths: int32 [B], 0 .. M * page: keys that the newest query sees without a window, its own
        included.
      scale: factor of the products, usually H ** -0.5.
      window: how many latest positions are seen, the query's own included; None for all.
      implementation: 'auto', 'xla', 'pallas_tpu', 'pallas_gpu', or 'interpret' (the TPU kernel in
        interpret mode, for tests).

    Returns:
      Shape and type of q; zero for queries that see nothing.

    Raises:
      ValueError: for shapes, types or arguments that do not fit together.
      ImplementationUnavailableError: if a demanded implementation cannot serve the call.

    Source: GQA (arXiv 2305.13245), pages as in PagedAttention (arXiv 2309.06180).
    """
    check_arguments(q, k_pages, v_pages, block_tables, lengths, window)
    table = _TABLE
    if implementation == "auto":
        table = measured.allowed(_TABLE, MEASURED, block_tables.shape[1] * k_pages.shape[2])
    chunk = q if q.ndim == 4 else q[:, None]
    with jax.named_scope("decode_attention"):
        out = implementation_lib.dispatch(
            "decode_attention", table, implementation, chunk, k_pages, v_pages, block_tables,
            lengths, scale=float(scale), window=window,
        )  # fmt: skip
    return out.reshape(q.shape)


def check_arguments(q, k_pages, v_pages, block_tables, lengths, window):
    """Raises ValueError for arguments of `decode_attention` that do not fit together."""
    if q.ndim not in (3, 4):
        raise ValueError(
            f"q has shape {q.shape}; [rows, heads, width] or [rows, queries, heads, width] is "
            "needed."
        )
    if k_pages.ndim != 4 or k_pages.shape != v_pages.shape or k_pages.shape[3] != q.shape[-1]:
        raise ValueError(
            f"k_pages has shape {k_pages.shape} and v_pages {v_pages.shape}; both must be [pages, "
            f"kv_heads, page size, {q.shape[-1]}] to fit q of shape {q.shape}."
        )
    heads, kv_heads = q.shape[-2], k_pages.shape[1]
    if heads % kv_heads:
        raise ValueError(f"q has {heads} heads, which is no multiple of the {kv_heads} of k_pages.")
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q is {q.dtype}; a floating type is needed.")
    if k_pages.dtype != v_pages.dtype or k_pages.dtype not in _PAGE_TYPES:
        names = ", ".join(jnp.dtype(x).name for x in _PAGE_TYPES)
        raise ValueError(
            f"k_pages is {k_pages.dtype} and v_pages {v_pages.dtype}; one type for both is needed, "
            f"of {names}."
        )
    rows = q.shape[0]
    if block_tables.ndim != 2 or block_tables.shape[0] != rows or block_tables.dtype != jnp.int32:
        raise ValueError(
            f"block_tables is {block_tables.dtype}{list(block_tables.shape)}; int32[{rows}, pages "
            "of a row] is needed."
        )
    if lengths.shape != (rows,) or lengths.dtype != jnp.int32:
        raise ValueError(
            f"lengths is {lengths.dtype}{list(lengths.shape)}; int32[{rows}] is needed."
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, or None.")
