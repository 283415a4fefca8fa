"""Learned relative position and time tables of FuXi-alpha and HSTU (released code, spec 1.2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import BackboneConfig, partitioned

NUM_TIME_BUCKETS = 128


class RelativeBias(nn.Module):
    """Position weights by distance and time weights by bucket, one pair of tables per layer.

    Returns (position_weights (N,) for distances i - j = 0..N-1 or None, time_weights (129,) or
    None). The position table keeps the released 2n - 1 entries, of which the causal mask leaves
    n in use: A_pos[i, j] = w[j - i + n - 1].
    """

    config: BackboneConfig
    position: bool = True
    time: bool = True

    @nn.compact
    def __call__(self, num_columns: int) -> tuple[jax.Array | None, jax.Array | None]:
        n = self.config.num_slots
        init = nn.initializers.normal(0.02)
        position = time = None
        if self.position:
            table = self.param("position", partitioned(init, None), (2 * n - 1,))
            position = table[n - 1 :: -1]  # by distance 0..n-1
            if num_columns > n:  # packed rows may be longer than any one user's window
                position = jnp.pad(position, (0, num_columns - n))
            position = position[:num_columns]
        if self.time:
            time = self.param("time", partitioned(init, None), (NUM_TIME_BUCKETS + 1,))
        return position, time


def query_times(context: dict[str, jax.Array], time_difference: str) -> jax.Array:
    """Time of the query side of the time difference, (R, N) int32.

    'request' (released code): the time of the next event, known at request time (ts[i+1]).
    'items' (paper, from memory): the time of the query's own event (ts[i]).
    """
    return context["query_times" if time_difference == "request" else "timestamps"]


def semantic_factor(segment_ids: jax.Array, divisor: str, num_slots: int) -> jax.Array | None:
    """What turns the constant 1/n into 1/length, (R, N, 1, 1) float32; None for 'slots'.

    The released code divides by the constant number of slots; dividing by the user's own length
    was proposed in its issue tracker (spec 1.3).
    """
    if divisor == "slots":
        return None
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    lengths = jnp.where(segment_ids > 0, jnp.sum(same, -1), num_slots)
    return (num_slots / lengths.astype(jnp.float32))[..., None, None]
