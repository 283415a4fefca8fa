"""Keys and values of earlier positions, for prefill and decoding.

Letters: L layers, B rows, S slots, K key-value heads, H head width, T new positions.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pangu_jax.models.config import DecoderConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """What a decoder remembers of the positions it has seen.

    k, v: (L, B, S, K, H), keys already turned by their rotary angle.
    segment_ids: int32 (B, S); 0 in slots that are empty or hold padding, which nothing attends to.
    positions: int32 (B, S). A slot's meaning is its position and segment, not its index, so rows
      of unequal length may be padded on either side.
    length: int32 scalar, slots used; the next call writes from there on.
    """

    k: jax.Array
    v: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    length: jax.Array

    @property
    def capacity(self) -> int:
        return self.k.shape[2]

    def with_tokens(self, segment_ids: jax.Array, positions: jax.Array) -> KVCache:
        """The cache whose next T slots carry these int32 (B, T); `length` has moved past them.

        Raises:
          ValueError: the slots do not suffice (checked where the length is a concrete number;
            under jit, writing past the end would overwrite the last slots).
        """
        new = segment_ids.shape[1]
        used = None if isinstance(self.length, jax.core.Tracer) else int(self.length)
        if (used or 0) + new > self.capacity:
            raise ValueError(
                f"The cache has {self.capacity} slots, {used or 0} of them used, and {new} more "
                "are needed; create it with a larger capacity."
            )

        def put(old, x):
            return jax.lax.dynamic_update_slice(old, x.astype(old.dtype), (0, self.length))

        return dataclasses.replace(
            self,
            segment_ids=put(self.segment_ids, segment_ids),
            positions=put(self.positions, positions),
            length=self.length + new,
        )


def create_cache(
    config: DecoderConfig, batch: int, capacity: int, dtype: str | None = None
) -> KVCache:
    """An empty cache for `batch` rows of up to `capacity` positions; keys in `dtype`.

    `dtype` defaults to the config's.
    """
    shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
    return KVCache(
        k=jnp.zeros(shape, dtype or config.dtype),
        v=jnp.zeros(shape, dtype or config.dtype),
        segment_ids=jnp.zeros((batch, capacity), jnp.int32),
        positions=jnp.zeros((batch, capacity), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def write_layer(
    cache: jax.Array, layer: jax.Array, start: jax.Array, new: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(cache with `new` (B, T, K, H) in slots start.. of a layer, that layer (B, S, K, H))."""
    new = new.astype(cache.dtype)[None]
    cache = jax.lax.dynamic_update_slice(cache, new, (layer, 0, start, 0, 0))
    return cache, jax.lax.dynamic_index_in_dim(cache, layer, 0, keepdims=False)
