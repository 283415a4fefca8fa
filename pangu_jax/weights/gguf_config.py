"""Metadata of a GGUF file to a DecoderConfig, and GGUF's tensor names.

Key and tensor names: the GGUF specification of the ggml project.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pangu_jax.models.config import DecoderConfig, RopeScaling
from pangu_jax.models.rope import rope_frequencies
from pangu_jax.weights.errors import WeightsError

ARCHITECTURES = ("llama", "qwen2", "qwen3", "pangu-embedded")
ROPE_FACTORS = "rope_freqs.weight"

_LAYER = "blk.{}."
TENSOR_NAMES = {
    "embed/embedding": "token_embd.weight",
    "layers/attn_norm/scale": _LAYER + "attn_norm.weight",
    **{
        f"layers/attn/{ours}/{kind}": _LAYER + f"attn_{theirs}.{suffix}"
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))
        for kind, suffix in (("kernel", "weight"), ("bias", "bias"))
    },
    "layers/attn/q_norm/scale": _LAYER + "attn_q_norm.weight",
    "layers/attn/k_norm/scale": _LAYER + "attn_k_norm.weight",
    "layers/mlp_norm/scale": _LAYER + "ffn_norm.weight",
    **{
        f"layers/mlp/{name}/kernel": _LAYER + f"ffn_{name}.weight"
        for name in ("gate", "up", "down")
    },
    "final_norm/scale": "output_norm.weight",
    "head/kernel": "output.weight",
}


def is_interleaved(architecture: str) -> bool:
    """Whether q and k are stored with rotary pairs side by side (only in 'llama' files)."""
    return architecture == "llama"


class Metadata:
    """Access to the keys and values of a GGUF file; `architecture` is the prefix of its own."""

    def __init__(self, values: Mapping[str, Any], source: str):
        self._values, self.source = values, source
        self.architecture = self.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise WeightsError(
                f"{source}: architecture {self.architecture!r} is unknown; read are "
                f"{', '.join(ARCHITECTURES)}."
            )

    def get(self, key: str, default: Any = None) -> Any:
        """The value as plain Python: numbers, texts and lists of them."""
        value = self._values.get(key, default)
        try:
            if isinstance(value, bytes):
                return value.decode("utf-8")
            if isinstance(value, np.ndarray):
                return value.tolist()
            if isinstance(value, list):
                return [each.decode("utf-8") for each in value]
        except UnicodeDecodeError as error:
            raise WeightsError(
                f"{self.source}: the value of {key} is no text ({error})."
            ) from error
        return value

    def own(self, key: str, default: Any = None) -> Any:
        """Value of '<architecture>.<key>'."""
        return self.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        value = self.own(key)
        if value is None:
            raise WeightsError(f"{self.source} lacks the key {self.architecture}.{key}.")
        return value


def config_from_gguf(
    metadata: Metadata, shapes: dict[str, tuple[int, ...]], rope_factors: np.ndarray | None
) -> DecoderConfig:
    """DecoderConfig of a file.

    Args:
      metadata: of the file. shapes: tensor name to shape, outputs first.
      rope_factors: divisors of the rotary frequencies, (H / 2,), where the file has them.

    Raises:
      WeightsError: a missing key, or a feature that this decoder lacks.
    """
    try:
        return _config(metadata, shapes, rope_factors)
    except WeightsError:
        raise
    except (TypeError, ValueError, ZeroDivisionError) as error:  # a value of the wrong kind or size
        raise WeightsError(f"{metadata.source}: {error}") from error


def _config(metadata, shapes, rope_factors) -> DecoderConfig:
    source = metadata.source
    hidden, heads = int(metadata.need("embedding_length")), _one(metadata, "attention.head_count")
    head_dim = int(metadata.own("attention.key_length", hidden // heads))
    rotary = int(metadata.own("rope.dimension_count", head_dim))
    if rotary != head_dim:
        raise WeightsError(
            f"{source}: only {rotary} of {head_dim} features of a head are rotary; all are needed."
        )
    for key in ("expert_count", "attention.sliding_window"):
        if metadata.own(key):
            raise WeightsError(
                f"{source}: {metadata.architecture}.{key}={metadata.own(key)} is not supported by "
                "this decoder (no experts, no sliding window)."
            )
    embedding = shapes.get("token_embd.weight")
    if embedding is None:
        raise WeightsError(f"{source} lacks the tensor token_embd.weight: it is incomplete.")
    layers = int(metadata.need("block_count"))
    if layers > len(shapes):  # a damaged number, before a list of so many tensors is made
        raise WeightsError(f"{source}: block_count={layers}, but there are {len(shapes)} tensors.")
    base = _short(metadata.own("rope.freq_base", 10_000.0))
    return DecoderConfig(
        vocab_size=int(embedding[0]),
        num_layers=layers,
        hidden_dim=hidden,
        mlp_dim=_one(metadata, "feed_forward_length"),
        num_heads=heads,
        num_kv_heads=_one(metadata, "attention.head_count_kv", heads),
        head_dim=head_dim,
        norm_eps=_short(metadata.need("attention.layer_norm_rms_epsilon")),
        rope_base=base,
        rope_scaling=_scaling(metadata, head_dim, base, rope_factors),
        qkv_bias="blk.0.attn_q.bias" in shapes,
        out_bias="blk.0.attn_output.bias" in shapes,
        qk_norm=metadata.architecture == "qwen3",
        tie_embeddings="output.weight" not in shapes,
        init="traditional",
        embedding_std=0.02,  # matters only to who trains such a model from scratch
    )


def _one(metadata: Metadata, key: str, default: int | None = None) -> int:
    """A number that may also be stored once per layer."""
    value = metadata.own(key, default)
    if value is None:
        value = metadata.need(key)
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1:
        raise WeightsError(
            f"{metadata.source}: {metadata.architecture}.{key} differs between layers "
            f"({sorted(values)}); one value for all is needed."
        )
    return int(values.pop())


def _short(value: float) -> float:
    """The shortest decimal of a float32, 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _scaling(metadata, head_dim, base, factors) -> RopeScaling | None:
    kind = metadata.own("rope.scaling.type", "none")
    stretch = float(metadata.own("rope.scaling.factor", 1.0))
    if kind not in ("none", "llama3") and stretch != 1:
        raise WeightsError(
            f"{metadata.source}: rope.scaling.type={kind!r} with factor {stretch} is not "
            "supported; read are 'none' and Llama-3 frequency factors."
        )
    if factors is None:
        return None
    if np.allclose(factors, 1):
        return None
    length = int(metadata.own("rope.scaling.original_context_length", 8192))
    # A file holds the finished divisors, not what they were made from; Llama 3 has one recipe.
    scaling = RopeScaling(factor=_short(np.max(factors)), original_length=length)
    wanted = rope_frequencies(head_dim, base) / rope_frequencies(head_dim, base, scaling)
    if factors.shape != wanted.shape or not np.allclose(factors, wanted, rtol=1e-4):
        raise WeightsError(
            f"{metadata.source}: {ROPE_FACTORS} is not Llama 3's stretching by "
            f"{scaling.factor} of {length} tokens; other stretchings are not supported."
        )
    return scaling
