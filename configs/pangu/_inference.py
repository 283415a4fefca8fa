"""What the configurations of inference share."""

from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.run_config import InferenceConfig


def config(weights: str) -> InferenceConfig:
    """Inference with weights of this type."""
    return InferenceConfig(engine=EngineConfig(weights=weights))
