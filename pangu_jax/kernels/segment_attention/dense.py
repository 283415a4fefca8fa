"""Segment attention with the whole map at once: for decoding, where the map is one row.

The definition itself serves; what differs from a kernel is memory, O(B N T S).
"""

from __future__ import annotations

from pangu_jax.kernels.segment_attention.reference import segment_attention_reference

segment_attention_dense = segment_attention_reference
