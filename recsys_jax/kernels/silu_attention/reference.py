"""The definition of the operation in plain jnp: dense, differentiable, float64 when asked.

Every implementation is tested against this file. It materialises [B, H, N, N] and is meant for
tests and for reading, not for training.

Letters: B batch, N positions, H heads, K width of q and k, D width of v, P and T table entries.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from recsys_jax.kernels.silu_attention.buckets import time_bucket
from recsys_jax.kernels.silu_attention.output import SiluAttentionOutput


def silu_attention_reference(
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
) -> SiluAttentionOutput:
    """Same arguments, shapes and meaning as `api.silu_attention`."""
    del packed  # The dense mask is right for both.
    n = v.shape[1]
    acc = jnp.promote_types(v.dtype, jnp.float32)
    i, j = jnp.arange(n)[:, None], jnp.arange(n)[None, :]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    mask = (same & (segment_ids[:, :, None] > 0) & (j <= i)).astype(acc)  # [B, N, N]
    # Zeroing the rows, not only the products, keeps a NaN at padding out of everything.
    valid = (segment_ids > 0)[:, :, None, None]
    v = jnp.where(valid, v, 0).astype(acc)

    position = time = semantic = None
    if position_weights is not None:
        distance = jnp.clip(i - j, 0, position_weights.shape[0] - 1)
        position = position_weights.astype(acc)[distance]  # [N, N]
    if time_weights is not None:
        dt = query_times[:, :, None] - timestamps[:, None, :]
        time = time_weights.astype(acc)[time_bucket(dt, time_weights.shape[0] - 1)]  # [B, N, N]
    if q is not None:
        q = jnp.where(valid, q, 0).astype(acc)
        k = jnp.where(valid, k, 0).astype(acc)
        semantic = jnp.einsum("bihc,bjhc->bhij", q, k, precision="highest")

    def mix(weights, equation):
        return jnp.einsum(equation, weights, v, precision="highest")

    if bias == "added":
        logits = semantic
        if position is not None:
            logits = logits + position
        if time is not None:
            logits = logits + time[:, None]
        out = mix(jax.nn.silu(logits) * scale * mask[:, None], "bhij,bjhd->bihd")
        return SiluAttentionOutput(out, None, None)
    return SiluAttentionOutput(
        None
        if semantic is None
        else mix(jax.nn.silu(semantic) * scale * mask[:, None], "bhij,bjhd->bihd"),
        None if time is None else mix(time * mask, "bij,bjhd->bihd"),
        None if position is None else mix(position * mask, "bij,bjhd->bihd"),
    )
