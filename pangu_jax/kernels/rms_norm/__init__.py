"""RMSNorm, and the residual step between a branch and the next norm."""

from pangu_jax.kernels.rms_norm.api import fused_sandwich_step, rms_norm

__all__ = ["fused_sandwich_step", "rms_norm"]
