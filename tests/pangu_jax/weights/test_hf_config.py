"""config.json as published: every key that the authors' files hold, by family and by writer."""

import dataclasses

import pytest

from pangu_jax.models import RopeScaling, preset
from pangu_jax.weights import WeightsError
from pangu_jax.weights.hf_config import config_from_hf

QWEN2_5 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
LLAMA3_2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 5632, "max_position_embeddings": 2048, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.35.0",
    "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
SMOLLM2_360M = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 960,
    "initializer_range": 0.02, "intermediate_size": 2560, "is_llama_config": True,
    "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 15, "num_hidden_layers": 32, "num_key_value_heads": 5,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False,
    "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
SMOLLM2_1_7B = SMOLLM2_360M | {
    "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_hidden_layers": 24, "num_key_value_heads": 32, "rope_theta": 130000,
}  # fmt: skip
OPENPANGU_7B = {
    "architectures": ["PanguEmbeddedForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_openpangu_dense.PanguEmbeddedConfig"},
    "attention_dropout": 0.0, "bias": True, "bos_token_id": 1, "eos_token_id": 45892,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 12800, "max_position_embeddings": 32768, "model_type": "PanguEmbedded",
    "num_attention_heads": 32, "num_hidden_layers": 34, "num_key_value_heads": 8,
    "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_theta": 16000000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.53.2",
    "use_cache": True, "vocab_size": 153376,
}  # fmt: skip
PUBLISHED = {
    "Qwen2.5-0.5B-Instruct": (QWEN2_5, 494_032_768),
    "Qwen3-0.6B": (QWEN3, 596_049_920),
    "Llama-3.2-1B": (LLAMA3_2, 1_235_814_400),
    "TinyLlama-1.1B": (TINYLLAMA, 1_100_048_384),
    "SmolLM2-360M": (SMOLLM2_360M, 361_821_120),
    "SmolLM2-1.7B": (SMOLLM2_1_7B, 1_711_376_384),
    # The index of its shards says 16,061,784,576 bytes: bfloat16, and 34 float32 rotary buffers.
    "openPangu-Embedded-7B": (OPENPANGU_7B, (16_061_784_576 - 34 * 64 * 4) // 2),
}
WANTED = {
    "Qwen2.5-0.5B-Instruct": preset("qwen2_5_0_5b"),
    "Qwen3-0.6B": preset("qwen3_0_6b"),
    "openPangu-Embedded-7B": preset("openpangu_embedded_7b", dtype="float32", remat="none"),
}


def as_transformers_5(values):
    """The same settings as transformers 5 writes them: other names, groups, and more keys."""
    out = {k: v for k, v in values.items() if k not in ("rope_theta", "rope_scaling")}
    out["dtype"] = out.pop("torch_dtype")
    scaling = values.get("rope_scaling") or {"rope_type": "default"}
    out["rope_parameters"] = scaling | {"rope_theta": values["rope_theta"]}
    if out["model_type"] in ("qwen2", "qwen3"):
        out |= {"layer_types": ["full_attention"] * out["num_hidden_layers"]}
        out |= {"sliding_window": None, "pad_token_id": None}
    elif out["model_type"] == "llama":
        out["head_dim"] = out["hidden_size"] // out["num_attention_heads"]
    return out | {"transformers_version": "5.23.0"}


@pytest.mark.parametrize("writer", ["published", "transformers 5"])
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_configurations(name, writer):
    values, parameters = PUBLISHED[name]
    if writer != "published":
        values = as_transformers_5(values)
    config = config_from_hf(values, "config.json")
    assert config.num_parameters() == parameters
    assert config.rope_base == PUBLISHED[name][0]["rope_theta"]
    assert config.norm_eps == values["rms_norm_eps"]
    assert config.embedding_std == 0.02
    scaling = RopeScaling(factor=32.0) if name.startswith("Llama") else None
    assert config.rope_scaling == scaling
    if name in WANTED:
        assert config == WANTED[name]


@pytest.mark.parametrize(
    "values, change, want",
    [
        (QWEN3, {"head_dim": ...}, {"head_dim": 128}),
        (LLAMA3_2, {"head_dim": None}, {"head_dim": 64}),
        (LLAMA3_2, {"architectures": None}, {}),
        (TINYLLAMA, {"rope_theta": ...}, {"rope_base": 10_000.0}),
        (TINYLLAMA, {"rope_theta": None, "initializer_range": None}, {"embedding_std": 0.5}),
        (TINYLLAMA, {"num_key_value_heads": None}, {"num_kv_heads": 32}),
        (TINYLLAMA, {"tie_word_embeddings": ...}, {"tie_embeddings": False}),
        (QWEN2_5, {"partial_rotary_factor": 1.0, "layer_types": None}, {}),
    ],
)
def test_keys_that_are_absent_or_null(values, change, want):
    changed = {k: v for k, v in (values | change).items() if v is not ...}
    plain = config_from_hf(values, "config.json")
    assert config_from_hf(changed, "config.json") == dataclasses.replace(plain, **want)


@pytest.mark.parametrize(
    "values, change, message",
    [
        (QWEN2_5, {"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        (QWEN2_5, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        (QWEN3, {"layer_types": ["sliding_attention"] * 28}, r"layer_types=\['sliding_attention'"),
        (LLAMA3_2, {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling lacks the key"),
        (LLAMA3_2, {"rope_scaling": "llama3"}, "rope_parameters='llama3' is not supported"),
        (TINYLLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (TINYLLAMA, {"architectures": ["MistralForCausalLM"]}, "'MistralForCausalLM' is unknown"),
    ],
)
def test_what_the_decoder_lacks_is_refused_by_name(values, change, message):
    with pytest.raises(WeightsError, match=message):
        config_from_hf(values | change, "config.json")
