"""Random numbers that do not depend on how far a batch is padded."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from recsys_jax.sequential.randomness import hash_bits


def uniforms(key: jax.Array, rows: int, steps: int) -> jax.Array:
    """float32 (rows, steps), uniform on [0, 1); further steps leave the earlier numbers as is.

    key: a typed key.
    """
    # 24 bits, so that the float conversion never rounds up to 1.
    bits = hash_bits(key, (steps, rows)) >> 8
    return (bits.astype(jnp.float32) * 2.0**-24).T


def choose(uniform: jax.Array, count: jax.Array) -> jax.Array:
    """int32 index in [0, count) from uniform numbers; 0 where count is 0."""
    index = jnp.floor(uniform * count.astype(jnp.float32)).astype(jnp.int32)
    return jnp.clip(index, 0, jnp.maximum(count - 1, 0))
