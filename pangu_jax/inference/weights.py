"""The parameters of a decoder as inference wants them: one tree per layer, in a chosen type.

Training stacks the layers so that one scan runs them. A decoding step reads every weight once, and
taking layers out of a stack would copy each of them first.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax.core import meta

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.projection import FlatKernel
from pangu_jax.models.quantized import Int8Kernel, quantize

WeightType = Literal["float32", "bfloat16", "float16", "int8", "int8_dynamic"]
WEIGHT_TYPES = get_args(WeightType)
_NUM_INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}


def prepare_weights(
    config: DecoderConfig, params: dict[str, Any], weights: WeightType = "float32"
) -> dict[str, Any]:
    """{'embedding', 'layers': (one tree per layer), 'final_norm', 'head' (None where tied)}.

    Args:
      params: of a `Decoder`, layers stacked; boxed or not.
      weights: type of kernels, embedding and head; norms stay float32. 'int8' rounds each output
        feature's weights to int8; 'int8_dynamic' also each activation row.

    Raises:
      ValueError: an unknown type, or parameters that hold integers already.
    """
    if weights not in WEIGHT_TYPES:
        raise ValueError(f"weights={weights!r} is unknown; allowed: {', '.join(WEIGHT_TYPES)}.")
    params = meta.unbox(params)
    if weights.startswith("int8"):
        mode = "dynamic" if weights == "int8_dynamic" else "weight_only"

        def of_kernel(kernel, name):
            return jax.jit(quantize, static_argnums=(1, 2))(kernel, _NUM_INPUTS[name], mode)

        def of_table(table):  # (V, D): one scale per token, for look-up and logits alike
            return jax.jit(quantize, static_argnums=(1, 2))(table.T, 1, mode)

        def of_bias(bias):
            return jnp.asarray(bias, jnp.float32)
    else:

        def of_kernel(kernel, name):
            inputs = math.prod(kernel.shape[: _NUM_INPUTS[name]])
            return FlatKernel(jnp.asarray(kernel, weights).reshape(inputs, -1), kernel.shape)

        def of_table(table):
            return jnp.asarray(table, weights)

        of_bias = of_table

    def of_layer(tree, name=""):
        out = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                out[key] = of_layer(value, key)
            elif key == "kernel":
                out[key] = of_kernel(value, name)
            else:
                out[key] = of_bias(value) if key == "bias" else jnp.asarray(value, jnp.float32)
        return out

    layers = params["layers"]
    return {
        "embedding": of_table(params["embed"]["embedding"]),
        "layers": tuple(
            of_layer(jax.tree.map(lambda x, i=i: x[i], layers)) for i in range(config.num_layers)
        ),
        "final_norm": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params["final_norm"]),
        "head": None if config.tie_embeddings else of_table(params["head"]["kernel"].T),
    }


def num_bytes(weights: Any) -> int:
    """Bytes of all arrays in a tree."""
    return sum(x.nbytes for x in jax.tree.leaves(weights))


def look_up(table: jax.Array | Int8Kernel, tokens: jax.Array, dtype: str) -> jax.Array:
    """Rows of an embedding (V, D) for int32 tokens (...) -> (..., D)."""
    if isinstance(table, Int8Kernel):
        rows = jnp.take(table.q, tokens, axis=0).astype(jnp.float32)
        return (rows * jnp.take(table.scale, tokens)[..., None]).astype(dtype)
    return jnp.take(table, tokens, axis=0).astype(dtype)
