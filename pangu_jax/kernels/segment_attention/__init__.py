"""Causal attention within documents: grouped heads, resets at segment borders, given positions."""

from pangu_jax.kernels.segment_attention.api import segment_attention
from pangu_jax.kernels.segment_attention.parts import attend_backward, attend_forward

__all__ = ["attend_backward", "attend_forward", "segment_attention"]
