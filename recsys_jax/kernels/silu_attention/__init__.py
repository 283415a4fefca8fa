"""SiLU attention with bucketed time and relative position weights (FuXi-alpha, HSTU)."""

from recsys_jax.kernels.silu_attention.api import SiluAttentionOutput, silu_attention
from recsys_jax.kernels.silu_attention.buckets import bucket_thresholds, time_bucket

__all__ = ["SiluAttentionOutput", "bucket_thresholds", "silu_attention", "time_bucket"]
