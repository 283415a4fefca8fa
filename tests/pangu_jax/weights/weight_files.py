"""Small files for the tests: GGUF as llama.cpp lays it out, directories as Hugging Face does."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

from pangu_jax.models import preset

# Module-wide: whoever imports this file is skipped where an optional package is absent.
for _package in ("gguf", "safetensors", "tokenizers", "jinja2"):
    pytest.importorskip(_package)

import gguf  # noqa: E402
from gguf.quants import quantize  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))
from seeded import values  # noqa: E402, F401

SMALL = preset(
    "debug", norm_scheme="pre_ln", vocab_size=40, hidden_dim=64, mlp_dim=96, num_heads=4,
    num_kv_heads=2, head_dim=16, norm_eps=1e-5, rope_base=5000.0, init="traditional",
    embedding_std=0.02,
)  # fmt: skip


def random_params(config, seed=0):
    """Independent of the package's map: every array drawn by hand in our layout."""
    rng = np.random.default_rng(seed)
    L, D, F, V = config.num_layers, config.hidden_dim, config.mlp_dim, config.vocab_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim

    def draw(*shape, around=0.0):
        return (rng.uniform(-0.5, 0.5, shape) + around).astype(np.float32)

    attn = {
        "q": {"kernel": draw(L, D, N, H)},
        "k": {"kernel": draw(L, D, K, H)},
        "v": {"kernel": draw(L, D, K, H)},
        "o": {"kernel": draw(L, N, H, D)},
    }
    if config.qkv_bias:
        for name, heads in (("q", N), ("k", K), ("v", K)):
            attn[name]["bias"] = draw(L, heads, H)
    if config.out_bias:
        attn["o"]["bias"] = draw(L, D)
    if config.qk_norm:
        attn["q_norm"] = {"scale": draw(L, H, around=1)}
        attn["k_norm"] = {"scale": draw(L, H, around=1)}
    layers = {
        "attn_norm": {"scale": draw(L, D, around=1)},
        "attn": attn,
        "mlp_norm": {"scale": draw(L, D, around=1)},
        "mlp": {
            "gate": {"kernel": draw(L, D, F)},
            "up": {"kernel": draw(L, D, F)},
            "down": {"kernel": draw(L, F, D)},
        },
    }
    if config.has_post_norms:
        layers["post_attn_norm"] = {"scale": draw(L, D, around=1)}
        layers["post_mlp_norm"] = {"scale": draw(L, D, around=1)}
    params = {
        "embed": {"embedding": draw(V, D)},
        "layers": layers,
        "final_norm": {"scale": draw(D, around=1)},
    }
    if not config.tie_embeddings:
        params["head"] = {"kernel": draw(D, V)}
    return params


def llama_cpp_rows(weight, heads):
    """How llama.cpp's converter stores q and k of Llama: row 2i holds row i of a head, row 2i + 1
    row i + H/2. Written row by row, so that the importer's axis arithmetic has an independent
    reference."""
    out = np.empty_like(weight)
    width = weight.shape[0] // heads
    for head in range(heads):
        for i in range(width // 2):
            out[head * width + 2 * i] = weight[head * width + i]
            out[head * width + 2 * i + 1] = weight[head * width + i + width // 2]
    return out


def gguf_tensors(config, params, architecture="llama"):
    """Name to float32 array in a GGUF file's shape."""
    D = config.hidden_dim
    out = {"token_embd.weight": params["embed"]["embedding"]}
    for layer in range(config.num_layers):
        p = params["layers"]
        at = f"blk.{layer}."
        for norm, name in (("attn_norm", "attn_norm"), ("mlp_norm", "ffn_norm")):
            out[f"{at}{name}.weight"] = p[norm]["scale"][layer]
        for ours, theirs, heads in (
            ("q", "attn_q", config.num_heads),
            ("k", "attn_k", config.num_kv_heads),
            ("v", "attn_v", None),
        ):
            weight = p["attn"][ours]["kernel"][layer].reshape(D, -1).T
            bias = p["attn"][ours].get("bias")
            if bias is not None:
                bias = bias[layer].reshape(-1)
            if heads and architecture == "llama":
                weight = llama_cpp_rows(weight, heads)
                bias = None if bias is None else llama_cpp_rows(bias, heads)
            out[f"{at}{theirs}.weight"] = weight
            if bias is not None:
                out[f"{at}{theirs}.bias"] = bias
        out[f"{at}attn_output.weight"] = p["attn"]["o"]["kernel"][layer].reshape(-1, D).T
        if config.out_bias:
            out[f"{at}attn_output.bias"] = p["attn"]["o"]["bias"][layer]
        if config.qk_norm:
            for norm in ("q_norm", "k_norm"):
                out[f"{at}attn_{norm}.weight"] = p["attn"][norm]["scale"][layer]
        for name in ("gate", "up", "down"):
            out[f"{at}ffn_{name}.weight"] = p["mlp"][name]["kernel"][layer].T
    out["output_norm.weight"] = params["final_norm"]["scale"]
    if not config.tie_embeddings:
        out["output.weight"] = params["head"]["kernel"].T
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def gguf_writer(path, config, architecture="llama", *, context_length=128):
    """A writer that has the sizes of the model."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(context_length)
    writer.add_embedding_length(config.hidden_dim)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    return writer


def write_gguf(path, config, tensors, *, architecture="llama", types=None, edit=None):
    """Writes a file; `types` gives a GGMLQuantizationType by name, `edit(writer)` more keys."""
    writer = gguf_writer(path, config, architecture)
    writer.add_key_length(config.head_dim)
    if edit:
        edit(writer)
    for name, array in tensors.items():
        kind = (types or {}).get(name)
        if kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_hf(folder, config_values, tensors):
    """A directory with one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_values))
    save_file(tensors, folder / "model.safetensors")
    return folder
