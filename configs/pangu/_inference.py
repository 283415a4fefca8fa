"""What the configurations of inference share."""

from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.run_config import InferenceConfig


def config(weights: str) -> InferenceConfig:
    """Inference with weights of this type; the cache of rounded weights is rounded too."""
    cache = "float16" if weights.startswith("int8") else "auto"
    return InferenceConfig(engine=EngineConfig(weights=weights, cache_dtype=cache))
