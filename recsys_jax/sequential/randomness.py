"""Cheap random bits for dropout and negative sampling.

JAX's threefry takes about 25 ns per number on a CPU core, which made drawing masks and negatives
the larger part of a training step of these small models. Here a number is an integer hash of its
index and the key: about 1 ns, the same on every device and under every sharding, and of ample
quality for masks and samples (tests/recsys_jax/sequential/test_randomness.py). Keys themselves
still come from `jax.random`.

The hash is the 32-bit permutation 'triple32' (C. Wellons, public domain constants), applied twice
with one half of the key each.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def _triple32(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 17)) * np.uint32(0xED5AD4BB)
    x = (x ^ (x >> 11)) * np.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * np.uint32(0x31848BAB)
    return x ^ (x >> 14)


def hash_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32 numbers of `shape`, a function of the typed key and of each index alone.

    Raises ValueError for 2^32 numbers or more: the index would repeat.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if size >= 2**32:
        raise ValueError(f"hash_bits draws fewer than 2^32 numbers at once, got shape {shape}")
    words = jax.random.key_data(key).reshape(-1).astype(jnp.uint32)
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    return _triple32(_triple32(index ^ words[0]) + words[-1])


def uniform_items(key: jax.Array, shape: tuple[int, ...], num_items: int) -> jax.Array:
    """Item ids 1..num_items, int32, uniform up to a relative bias of num_items / 2^32."""
    return (hash_bits(key, shape) % np.uint32(num_items)).astype(jnp.int32) + 1


class Dropout(nn.Module):
    """Zeroes a share `rate` of the entries and scales the others by 1 / (1 - rate)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """`x` with a share `rate` of its entries zeroed and the others scaled by 1 / (1 - rate)."""
    keep = hash_bits(key, x.shape) >= np.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1.0 - rate), 0)
