"""RMSNorm in plain XLA operations: the definition, which XLA fuses and differentiates well."""

from __future__ import annotations

from pangu_jax.kernels.rms_norm.reference import (
    fused_sandwich_step_reference,
    rms_norm_reference,
)

rms_norm_xla = rms_norm_reference
fused_sandwich_step_xla = fused_sandwich_step_reference
