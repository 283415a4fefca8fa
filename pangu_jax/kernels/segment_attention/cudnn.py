"""Segment attention by cuDNN's fused kernel, through the public function of JAX.

That function has no segments, so this serves rows of one document in row order on an NVIDIA GPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pangu_jax.kernels.implementation import current_platform


def segment_attention_cudnn(
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
) -> jax.Array:
    """Arguments and value as in `api.segment_attention`; float16 or bfloat16."""
    if q_segment_ids is not None or kv_segment_ids is not None:
        raise NotImplementedError("cuDNN is reached without segments: one document per row only")
    if q_positions is not None or kv_positions is not None:
        raise NotImplementedError("cuDNN is reached without positions: row order only")
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        raise NotImplementedError(f"cuDNN attention takes float16 or bfloat16, not {q.dtype}")
    if current_platform() != "gpu":
        raise NotImplementedError(f"cuDNN needs an NVIDIA GPU, not {current_platform()!r}")
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=True, implementation="cudnn",
        local_window_size=None if window is None else (window - 1, 0),
    )  # fmt: skip
