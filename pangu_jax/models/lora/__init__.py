"""LoRA: low-rank adapters beside a decoder's weights."""

from pangu_jax.models.lora.adapter import Adapter, check_adapter, fingerprint, init_lora
from pangu_jax.models.lora.bind import (
    bind,
    layer_slice,
    select,
    stack,
    with_logical_axes,
    with_weights,
)
from pangu_jax.models.lora.config import TARGETS, LoraConfig, LoraError
from pangu_jax.models.lora.kernel import LoraKernel, low_rank_product
from pangu_jax.models.lora.merge import Merged, merge, unmerge

__all__ = [
    "TARGETS",
    "Adapter",
    "LoraConfig",
    "LoraError",
    "LoraKernel",
    "Merged",
    "bind",
    "check_adapter",
    "fingerprint",
    "init_lora",
    "layer_slice",
    "low_rank_product",
    "merge",
    "select",
    "stack",
    "unmerge",
    "with_logical_axes",
    "with_weights",
]
