"""What the configurations of inference share."""

import dataclasses

from pangu_jax.inference import SamplingParams
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.run_config import BenchmarkConfig, InferenceConfig


def config(weights: str) -> InferenceConfig:
    """Inference with weights of this type; the cache of rounded weights is rounded too."""
    cache = "float16" if weights.startswith("int8") else "auto"
    return InferenceConfig(engine=EngineConfig(weights=weights, cache_dtype=cache))


def debug() -> InferenceConfig:
    """A few tokens, so that all of it runs in seconds."""
    small = config("int8")
    engine = dataclasses.replace(small.engine, context_length=256, max_rows=2)
    return dataclasses.replace(
        small,
        engine=engine,
        sampling=SamplingParams(max_tokens=8),
        benchmark=BenchmarkConfig(prompt_tokens=16, new_tokens=8, batch_sizes=(1,), repeats=1),
    )
