"""Tiny GGUF models of every architecture: llama.cpp's log-probabilities and ours."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_tokenizer_import as tokenizers
import weight_files as files

from pangu_jax.models import Decoder, RopeScaling
from pangu_jax.models.rope import rope_frequencies
from pangu_jax.weights import import_gguf

TOLERANCE = 2e-4
BASE = dataclasses.replace(files.SMALL, vocab_size=600, norm_eps=1e-2)
MODELS = {
    "llama": ("llama", {}),
    "llama_tied_bias": ("llama", {"qkv_bias": True, "tie_embeddings": True}),
    "llama3_stretched": (
        "llama",
        {"head_dim": 32, "rope_scaling": RopeScaling(factor=8.0, original_length=32)},
    ),
    "qwen2": ("qwen2", {"qkv_bias": True}),
    "qwen3": ("qwen3", {"qk_norm": True, "head_dim": 32}),
}


def config_of(name):
    return dataclasses.replace(BASE, **MODELS[name][1])


def write(path, name):
    """The same file every time; returns its path."""
    config = config_of(name)
    tensors = files.gguf_tensors(config, files.random_params(config, seed=3), MODELS[name][0])
    if config.rope_scaling:
        plain = rope_frequencies(config.head_dim, config.rope_base)
        scaled = rope_frequencies(config.head_dim, config.rope_base, config.rope_scaling)
        tensors["rope_freqs.weight"] = (plain / scaled).astype(np.float32)

    def edit(writer):
        tokenizers.plain_texts(writer)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        if config.rope_scaling:
            writer.add_rope_scaling_orig_ctx_len(config.rope_scaling.original_length)

    return files.write_gguf(path, config, tensors, architecture=MODELS[name][0], edit=edit)


def worst_difference(config, params, name):
    """Largest difference to llama.cpp's log-probabilities of its top five tokens."""
    peer = json.loads((files.FIXTURES / "llama_cpp.json").read_text())
    logits = jax.jit(Decoder(config).apply)({"params": params}, jnp.asarray([peer["ids"]]))[0]
    ours = np.asarray(jax.nn.log_softmax(logits))
    assert len(peer["models"][name]) == len(peer["ids"]) - 1
    return max(
        abs(ours[position, int(token)] - value)
        for position, top in enumerate(peer["models"][name])
        for token, value in top.items()
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_log_probabilities_are_those_of_llama_cpp(tmp_path, name):
    config, params = import_gguf(write(tmp_path / "m.gguf", name))
    assert config == config_of(name)
    # float32 on both sides, keys and values too.
    assert worst_difference(config, params, name) < TOLERANCE


def test_comparison_sees_permutation_and_stretching(tmp_path, monkeypatch):
    config, params = import_gguf(write(tmp_path / "a.gguf", "llama3_stretched"))
    plain = dataclasses.replace(config, rope_scaling=None)
    assert worst_difference(plain, params, "llama3_stretched") > 100 * TOLERANCE
    path = write(tmp_path / "b.gguf", "llama_tied_bias")
    right = import_gguf(path)[1]
    monkeypatch.setattr("pangu_jax.weights.gguf_import.is_interleaved", lambda _: False)
    config, wrong = import_gguf(path)
    assert worst_difference(config, wrong, "llama_tied_bias") > 100 * TOLERANCE
    # The biases alone, too: they are reordered like the rows they belong to.
    for name in "qk":
        right["layers"]["attn"][name]["bias"] = wrong["layers"]["attn"][name]["bias"]
    assert worst_difference(config, right, "llama_tied_bias") > 100 * TOLERANCE
