"""Rotary position embedding: frequencies, Llama-3 stretching, both feature layouts.

Letters: B rows, T positions, N heads, H head width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models.config import DecoderConfig, RopeScaling


def rope_frequencies(head_dim: int, base: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Angle per position of each pair of features: float64 (H / 2,), base^(-2 i / H).

    Source: RoFormer (arXiv 2104.09864) section 3.2.2; stretching as in Llama 3.1.
    """
    frequency = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 1 keeps a frequency, 0 divides it by the factor.
    keep = np.clip((scaling.original_length / wavelength - low) / (high - low), 0, 1)
    return frequency * (keep + (1 - keep) / scaling.factor)


def rope_tables(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), each (B, T, H / 2) float32 (float64 for a float64 model), for int (B, T)."""
    dtype = jnp.promote_types(config.dtype, jnp.float32)
    frequency = rope_frequencies(config.head_dim, config.rope_base, config.rope_scaling)
    angle = positions.astype(dtype)[..., None] * jnp.asarray(frequency, dtype)
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(
    x: jax.Array, tables: tuple[jax.Array, jax.Array], *, layout: str = "half"
) -> jax.Array:
    """Turns each pair of features of x (B, T, N, H) by its angle, in float32; type of x.

    layout 'half' pairs feature i with i + H/2, 'interleaved' pairs 2i with 2i + 1.
    """
    cos, sin = (table[:, :, None] for table in tables)
    if layout == "half":
        a, b = jnp.split(x.astype(cos.dtype), 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    else:
        pairs = x.astype(cos.dtype).reshape(*x.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
    return turned.astype(x.dtype)
