"""Weights of other programs in and out: GGUF, safetensors, their tokenizers and chat templates."""

from pangu_jax.weights.chat import render_chat, render_chat_marked
from pangu_jax.weights.errors import WeightsError
from pangu_jax.weights.gguf_import import import_gguf, open_gguf
from pangu_jax.weights.load import (
    BUILT_IN,
    DescribedModel,
    LoadedModel,
    describe_weights,
    load_weights,
)
from pangu_jax.weights.safetensors_export import export_safetensors
from pangu_jax.weights.safetensors_import import import_safetensors
from pangu_jax.weights.tokenizer_import import (
    LoadedTokenizer,
    SpecialTokens,
    tokenizer_from_gguf,
    tokenizer_from_hf,
)

__all__ = [
    "BUILT_IN",
    "DescribedModel",
    "LoadedModel",
    "LoadedTokenizer",
    "SpecialTokens",
    "WeightsError",
    "describe_weights",
    "export_safetensors",
    "import_gguf",
    "import_safetensors",
    "load_weights",
    "open_gguf",
    "render_chat",
    "render_chat_marked",
    "tokenizer_from_gguf",
    "tokenizer_from_hf",
]
