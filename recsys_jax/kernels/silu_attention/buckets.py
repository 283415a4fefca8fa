"""Time buckets: which entry of the time table belongs to a time difference.

The released FuXi-alpha and HSTU code uses ``floor(ln(max(|dt|, 1)) / 0.301)`` clipped to
``[0, num_buckets]`` (natural logarithm). Here the same function is an integer comparison against
thresholds found once on the host in float64, so every back end agrees bit for bit and no float
ever holds a raw timestamp. The float32 formula of the released code agrees except within a few
parts in 10^7 of a threshold; see docs/kernels.md for the differing values.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

INCREMENT = 0.301
MAX_DT = 2**31 - 1


@functools.lru_cache(maxsize=64)
def _thresholds(num_buckets: int) -> tuple[int, ...]:
    found = []
    for bucket in range(1, num_buckets + 1):
        first = int(np.ceil(np.exp(INCREMENT * bucket)))
        while np.log(float(first - 1)) / INCREMENT >= bucket:
            first -= 1
        while np.log(float(first)) / INCREMENT < bucket:
            first += 1
        if first > MAX_DT:
            break
        found.append(first)
    return tuple(found)


def bucket_thresholds(num_buckets: int = 128) -> np.ndarray:
    """First time difference of every bucket that an int32 can reach.

    Args:
      num_buckets: highest bucket, the clip of the definition; a table has one entry more.

    Returns:
      int32 [min(num_buckets, 71)], ascending; entry ``c - 1`` is the smallest ``dt`` with bucket
      ``>= c``. Two entries may be equal: bucket 1 holds no integer.
    """
    return np.asarray(_thresholds(int(num_buckets)), np.int32)


def next_thresholds(num_buckets: int = 128) -> np.ndarray:
    """int32 [C + 1] with C = highest reachable bucket: entry c is the first dt past bucket c."""
    return np.append(bucket_thresholds(num_buckets), np.int32(MAX_DT)).astype(np.int32)


def bucket_guess(dt: jax.Array, top: int) -> jax.Array:
    """The bucket of |dt| or the one below it: int32, from a float32 logarithm biased downwards.

    The bias (1e-4 of a bucket) is far above the rounding of the logarithm and far below one
    bucket, so one comparison with `next_thresholds` makes the guess exact.
    """
    size = jnp.maximum(jnp.abs(dt), 1).astype(jnp.float32)
    guess = jnp.log(size) * np.float32(1.0 / INCREMENT) - np.float32(1e-4)
    return jnp.clip(guess, 0.0, float(top)).astype(jnp.int32)


def time_bucket(dt: jax.Array, num_buckets: int = 128) -> jax.Array:
    """Bucket of a time difference: int32, same shape as `dt` (int32), in [0, num_buckets].

    Source: released code, ``floor(ln(max(|dt|, 1)) / 0.301)``; specification section 1.2.
    """
    following = next_thresholds(num_buckets)
    top = following.size - 1
    guess = bucket_guess(dt, top)
    first_past = jnp.asarray(following).at[guess].get(mode="promise_in_bounds")
    return jnp.minimum(guess + (jnp.abs(dt) >= first_past), top)
