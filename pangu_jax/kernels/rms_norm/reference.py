"""The definition of both operations in plain jnp: differentiable, float64 when asked.

Every implementation is tested against this file. Sums are in float32 or wider.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rms_norm_reference(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """Same arguments and value as `api.rms_norm`."""
    return _normalise(_wide(x), scale, eps).astype(x.dtype)


def fused_sandwich_step_reference(
    x: jax.Array,
    branch: jax.Array,
    post_scale: jax.Array | None,
    next_scale: jax.Array,
    *,
    eps: float,
) -> tuple[jax.Array, jax.Array]:
    """Same arguments and values as `api.fused_sandwich_step`."""
    branch = _wide(branch)
    if post_scale is not None:
        branch = _normalise(branch, post_scale, eps)
    # Rounded once, and the second norm sees the rounded stream: what it would see unfused.
    x = (_wide(x) + branch).astype(x.dtype)
    return x, _normalise(_wide(x), next_scale, eps).astype(x.dtype)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normalise(x, scale, eps):
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x * inverse * scale.astype(x.dtype)
