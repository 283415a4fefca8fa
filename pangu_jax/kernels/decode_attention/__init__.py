"""Attention of new queries over keys and values in pages, and writing new ones: for decoding."""

from pangu_jax.kernels.decode_attention.api import decode_attention
from pangu_jax.kernels.decode_attention.pages import gather_pages, write_tokens

__all__ = ["decode_attention", "gather_pages", "write_tokens"]
