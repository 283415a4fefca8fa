"""The decoder of every language model here: config, presets, module, cache and loss."""

from pangu_jax.models.cache import KVCache, create_cache
from pangu_jax.models.config import DecoderConfig, ModelConfigError, RopeScaling
from pangu_jax.models.decoder import Decoder, DecoderOutput, logits_of
from pangu_jax.models.loss import cross_entropy
from pangu_jax.models.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "KVCache",
    "ModelConfigError",
    "RopeScaling",
    "create_cache",
    "cross_entropy",
    "logits_of",
    "preset",
]
