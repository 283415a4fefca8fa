"""Causal attention within documents: grouped heads, resets at segment borders, given positions."""

from pangu_jax.kernels.segment_attention.api import segment_attention

__all__ = ["segment_attention"]
