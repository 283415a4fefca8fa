"""From a configuration to an engine that is ready."""

from __future__ import annotations

import dataclasses
import pathlib

from pangu_jax.inference.engine import Engine
from pangu_jax.inference.run_config import InferenceConfig
from pangu_jax.models.lora import fingerprint
from pangu_jax.weights import load_weights
from pangu_jax.weights.errors import WeightsError


def load_engine(config: InferenceConfig) -> Engine:
    """The engine of a configuration, with its adapters.

    Raises:
      WeightsError: weights or adapters that are not there or do not fit.
      ValueError: no tokenizer.
    """
    model = load_weights(config.model)
    if model.tokenizer is None:
        raise WeightsError(
            f"{config.model} comes without a tokenizer; put its tokenizer.json beside the weights."
        )
    if config.dtype != "auto":
        model = model._replace(config=dataclasses.replace(model.config, dtype=config.dtype))
    adapters = []
    if config.adapters:
        from pangu_jax.weights.peft import import_peft

        base = fingerprint(model.config, model.params)
        adapters = [
            import_peft(folder, model.config, base_fingerprint=base, name=name)
            for name, folder in config.adapters.items()
        ]
    name = config.serve.name or pathlib.Path(config.model).name
    return Engine(model, config.engine, adapters=adapters, model_name=name)
