"""Per-layer activation statistics, as in Pangu Ultra's Figures 9 and 10."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def activation_statistics(x: jax.Array, valid: jax.Array | None) -> dict[str, jax.Array]:
    """{'std', 'top1'}: standard deviation and largest magnitude of x (B, T, D), float32 scalars.

    valid: bool (B, T), positions that count; None for all. Constant to differentiation.
    """
    x = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    where = None if valid is None else valid[..., None]
    return {"std": jnp.std(x, where=where), "top1": jnp.max(jnp.abs(x), where=where, initial=0.0)}
