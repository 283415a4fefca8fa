"""Models of every GGUF tensor type, alone and mixed as published files mix them: llama.cpp's
log-probabilities and ours."""

import dataclasses
import hashlib
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_tokenizer_import as tokenizers
import weight_files as files
from gguf import GGMLQuantizationType as Kind
from gguf_blocks import KINDS, matrix, raw_blocks

from pangu_jax.models import Decoder
from pangu_jax.weights import import_gguf
from pangu_jax.weights.gguf_header import StoredTensor
from pangu_jax.weights.gguf_import import GgufFile

WIDE = dataclasses.replace(
    files.SMALL, vocab_size=600, hidden_dim=256, mlp_dim=512, num_heads=4, num_kv_heads=2,
    head_dim=64,
)  # fmt: skip
# 224 = 7 * 32 is no multiple of 256, as 896 (Qwen2.5-0.5B) and 960 (SmolLM2-360M) are none:
# llama.cpp then stores rows of that width in types with blocks of 32.
NARROW = dataclasses.replace(
    WIDE, hidden_dim=224, num_heads=7, num_kv_heads=1, head_dim=32, tie_embeddings=True
)


def _mixed(main, more, *, head=Kind.Q6_K):
    """Types of one file as llama.cpp's *_M recipes mix them."""
    return {"": main, "attn_v": more, "blk.1.ffn_down": more, "output.weight": head}


# Name: architecture, config, type by part of a tensor's name ('' for all others).
MODELS = {kind.name: ("llama", WIDE, {"": kind}) for kind in KINDS} | {
    "Q4_K_M": ("llama", WIDE, _mixed(Kind.Q4_K, Kind.Q6_K)),
    "Q5_K_M": ("qwen3", dataclasses.replace(WIDE, qk_norm=True), _mixed(Kind.Q5_K, Kind.Q6_K)),
    "IQ4_XS mixed": ("llama", WIDE, _mixed(Kind.IQ4_XS, Kind.Q5_K)),
    "Q6_K, tied head": (
        "llama", dataclasses.replace(WIDE, tie_embeddings=True), {"": Kind.Q6_K}
    ),
    "Q4_K_M, narrow rows": (
        "qwen2",
        dataclasses.replace(NARROW, qkv_bias=True),
        {"": Kind.Q5_0, "attn_v": Kind.Q8_0, "blk.0.ffn_down": Kind.Q4_K,
         "blk.1.ffn_down": Kind.Q6_K, "token_embd": Kind.Q8_0},
    ),
    "IQ4_XS, narrow rows": (
        "llama", NARROW, {"": Kind.IQ4_NL, "ffn_down": Kind.IQ4_XS, "token_embd": Kind.Q8_0}
    ),
    "openPangu, Q4_K": (
        "pangu-embedded", dataclasses.replace(WIDE, qkv_bias=True, out_bias=True), {"": Kind.Q4_K}
    ),
}  # fmt: skip


def write(path, name):
    """The same file every time; returns its path."""
    architecture, config, types = MODELS[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    writer = files.gguf_writer(path, config, architecture)
    tokenizers.plain_texts(writer)
    for tensor, values in files.gguf_tensors(config, files.random_params(config)).items():
        if values.ndim == 1:  # norms and biases are float32 in every published file
            noise = rng.uniform(-0.5, 0.5, values.shape) + ("norm" in tensor)
            writer.add_tensor(tensor, noise.astype(np.float32))
        else:
            part = max((part for part in types if part in tensor), key=len)
            kind = types[part]
            writer.add_tensor(tensor, matrix(kind, values.shape, rng), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def compare(path, name, peer):
    """(largest, mean difference to llama.cpp's log-probabilities of its likeliest tokens, share of
    positions with the same likeliest token, standard deviation of our logits)."""
    config, params = import_gguf(path)
    assert config == MODELS[name][1]
    logits = jax.jit(Decoder(config).apply)({"params": params}, jnp.asarray([peer["ids"]]))[0]
    ours = np.asarray(jax.nn.log_softmax(logits))
    top = peer["models"][name]
    differences = [
        abs(ours[position, int(token)] - value)
        for position, best in zip(peer["positions"], top, strict=True)
        for token, value in best.items()
    ]
    same = [
        str(ours[position].argmax()) == max(best, key=best.get)
        for position, best in zip(peer["positions"], top, strict=True)
    ]
    return max(differences), np.mean(differences), np.mean(same), float(np.std(logits))


PEER = json.loads((files.FIXTURES / "gguf_types.json").read_text())
# (largest, mean) difference. llama.cpp rounds activations to what a type's products take: float16,
# bfloat16, or 8 bits per block; only float32 files are computed in float32 on both sides.
EXACT = {"F32": (1e-4, 1e-4), "F16": (0.01, 0.004), "BF16": (0.04, 0.012)}
ROUNDED = (0.25, 0.06)


@pytest.mark.parametrize("name", list(MODELS))
def test_log_probabilities_are_those_of_llama_cpp(tmp_path, name):
    worst, mean, _, spread = compare(write(tmp_path / "m.gguf", name), name, PEER)
    largest, average = EXACT.get(name, ROUNDED)
    assert worst < largest and mean < average
    assert spread > 0.8  # logits that differ enough for the comparison to mean something


def test_comparison_sees_scales_that_are_wrong(tmp_path, monkeypatch):
    """A half of every block's scale in one layer's MLP, or rows in another order, is seen."""
    read = GgufFile.read
    for part, change in (
        ("blk.0.ffn_down.weight", lambda array: array / 2),
        ("blk.1.attn_output.weight", lambda array: array[::-1]),
    ):
        monkeypatch.setattr(
            GgufFile,
            "read",
            lambda self, name, dtype, part=part, change=change: (
                change(read(self, name, dtype)) if name == part else read(self, name, dtype)
            ),
        )
        mean = compare(write(tmp_path / "m.gguf", "Q4_K"), "Q4_K", PEER)[1]
        assert mean > 2 * ROUNDED[1]


def stored_blocks(shape):
    """A matrix of every quantised type, as an opened file would hold it."""
    tensors = {}
    for kind in KINDS:
        if kind not in (Kind.F32, Kind.F16, Kind.BF16):
            blocks = raw_blocks(kind, shape, np.random.default_rng(zlib.crc32(kind.name.encode())))
            tensors[kind.name] = StoredTensor(kind, tuple(shape), np.ascontiguousarray(blocks))
    return GgufFile("blocks", None, tensors)


def digest(array):
    """Of float32 values; 0 and -0 are one."""
    return hashlib.sha256((array + np.float32(0)).tobytes()).hexdigest()[:16]


BLOCKS = json.loads((files.FIXTURES / "gguf_blocks.json").read_text())


@pytest.mark.parametrize("name", sorted(BLOCKS["digests"]))
def test_values_are_those_of_ggml_to_the_bit(name):
    file = stored_blocks(BLOCKS["shape"])
    assert file.tensors.keys() == BLOCKS["digests"].keys()
    values = file.read(name)
    assert np.isfinite(values).all() and values.std() > 0.1
    assert digest(values) == BLOCKS["digests"][name]
    # The same in another type, and where a tensor is expanded in several pieces.
    for chunk in (512, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pangu_jax.weights.gguf_import._CHUNK", chunk)
            np.testing.assert_array_equal(file.read(name), values)
            narrow = file.read(name, np.float16)
            np.testing.assert_array_equal(narrow, values.astype(np.float16))
