"""What is trained and what stands still: all parameters, or an adapter beside a frozen base."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.decoder import Decoder, DecoderOutput
from pangu_jax.models.lora import Adapter, LoraConfig, bind, init_lora
from pangu_jax.models.lora.bind import with_logical_axes
from pangu_jax.models.lora.targets import get_target, target_specs
from pangu_jax.models.projection import FlatKernel

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tuning:
    """config: of the decoder. lora: of the adapter, None where all parameters are trained."""

    config: DecoderConfig
    lora: LoraConfig | None

    def init(self, key: jax.Array) -> Params:
        """Boxed parameters to train: an adapter that changes nothing yet, or a random decoder."""
        if self.lora is None:
            return Decoder(self.config).init(key, jnp.zeros((1, 2), jnp.int32))["params"]
        return with_logical_axes(init_lora(self.config, self.lora, key))

    def variables(self, params: Params, base: Params | None) -> dict[str, Any]:
        """Of `Decoder.apply`, for tuned parameters; base: the frozen decoder, None without LoRA."""
        if self.lora is None:
            return {"params": params}
        return {"params": base, "lora": bind([self.adapter(params)])}

    def adapter(self, params: Params, **about: Any) -> Adapter:
        """The tuned parameters as an adapter; only with LoRA."""
        return Adapter(name="tuned", config=self.lora, params=params, **about)

    def run(
        self, params: Params, base: Params | None, batch: dict[str, jax.Array],
        key: jax.Array | None = None,
    ) -> DecoderOutput:  # fmt: skip
        """Hidden states and head of the tuned model on a packed batch.

        key: of the adapter's dropout in training; None: no dropout.
        """
        if self.lora is None:
            return run_decoder(self.config, self.variables(params, None), batch)
        dropout = self.lora.dropout > 0 and key is not None
        variables = self.variables(params, _flat_kernels(self.config, base))
        return run_decoder(self.config, variables, batch, {"dropout": key} if dropout else {})


def _flat_kernels(config: DecoderConfig, base: Params) -> Params:
    """The base with its kernels as matrices; a change of shape inside a program costs nothing.

    Without a gradient to form in their own order, plain products do, whose results the 'products'
    policy of rematerialisation can keep: a step of SmolLM2-135M took a fifth less on a CPU.
    """
    base = jax.tree.map(lambda x: x, base)
    for name, spec in target_specs(config).items():
        held = get_target(base, name)
        kernel = held["kernel"]
        if isinstance(kernel, jax.Array):
            matrix = kernel.reshape(config.num_layers, math.prod(spec.inputs), -1)
            held["kernel"] = FlatKernel(matrix, kernel.shape[1:])
    return base


def run_decoder(config, variables, batch, rngs=None) -> DecoderOutput:
    """`Decoder.run` on the rows of a packed batch, in which examples lie in order."""
    return Decoder(config).apply(
        variables, batch["tokens"], batch["segment_ids"], batch["positions"], rngs=rngs or {},
        row_order=True, method="run",
    )  # fmt: skip
