"""Decode attention in plain XLA operations: the row's pages gathered, then the whole map."""

from __future__ import annotations

from pangu_jax.kernels.decode_attention.reference import decode_attention_reference

decode_attention_xla = decode_attention_reference
