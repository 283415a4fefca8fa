"""Knowledge-tracing models, by name."""

from recsys_jax.tracing.models.registry import MODELS, ModelSpec, build, model_spec

__all__ = ["MODELS", "ModelSpec", "build", "model_spec"]
