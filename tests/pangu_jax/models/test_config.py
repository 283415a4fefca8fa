"""Sizes, FLOPs and presets: published parameter counts, the specification's numbers, errors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.config.resolve import ConfigError, resolve
from pangu_jax.models import PRESETS, Decoder, DecoderConfig, ModelConfigError, preset
from pangu_jax.models.rope import rope_frequencies
from pangu_jax.parallel.sharding import unbox

# As the model cards and reports give them; Ultra is the specification's sum (135 B is a label).
PUBLISHED = {
    "ultra_135b": 133_881_311_232,
    "smollm2_135m": 134_515_008,
    "llama3_8b": 8_030_261_248,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_parameter_counts(name):
    assert PRESETS[name].num_parameters() == PUBLISHED[name]


def abstract_parameters(config):
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return unbox(jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens))["params"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_counts_equal_the_tree_of_the_module(name):
    """By component, without allocating anything."""
    config = PRESETS[name]
    counted = dict.fromkeys(config.parameter_counts(), 0)
    for path, x in jax.tree_util.tree_leaves_with_path(abstract_parameters(config)):
        keys = [key.key for key in path]
        if keys[-1] == "scale":
            kind = "norms"
        elif keys[0] == "layers":
            kind = {"attn": "attention", "mlp": "mlp"}[keys[1]]
        else:
            kind = {"embed": "embedding", "head": "head"}[keys[0]]
        assert x.dtype == jnp.float32
        counted[kind] += int(np.prod(x.shape, dtype=object))
    assert counted == config.parameter_counts()


def test_tree_is_the_shared_layout():
    config = preset("debug", qkv_bias=True, out_bias=True, qk_norm=True)
    length, d, f, n, k, h, v = 2, 48, 112, 4, 2, 12, 512
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
        for path, x in jax.tree_util.tree_leaves_with_path(abstract_parameters(config))
    }
    assert shapes == {
        "embed/embedding": (v, d),
        "layers/attn_norm/scale": (length, d),
        "layers/attn/q/kernel": (length, d, n, h),
        "layers/attn/q/bias": (length, n, h),
        "layers/attn/k/kernel": (length, d, k, h),
        "layers/attn/k/bias": (length, k, h),
        "layers/attn/v/kernel": (length, d, k, h),
        "layers/attn/v/bias": (length, k, h),
        "layers/attn/o/kernel": (length, n, h, d),
        "layers/attn/o/bias": (length, d),
        "layers/attn/q_norm/scale": (length, h),
        "layers/attn/k_norm/scale": (length, h),
        "layers/post_attn_norm/scale": (length, d),
        "layers/mlp_norm/scale": (length, d),
        "layers/mlp/gate/kernel": (length, d, f),
        "layers/mlp/up/kernel": (length, d, f),
        "layers/mlp/down/kernel": (length, f, d),
        "layers/post_mlp_norm/scale": (length, d),
        "final_norm/scale": (d,),
        "head/kernel": (d, v),
    }
    plain = abstract_parameters(preset("debug", norm_scheme="pre_ln", tie_embeddings=True))
    assert "head" not in plain and "post_attn_norm" not in plain["layers"]


def test_flops_of_ultra_are_those_of_the_specification():
    """0.820 T at 4K, 0.849 at 8K, 1.019 at 32K, 1.700 at 128K, causal half (section 5.3)."""
    config = PRESETS["ultra_135b"]
    got = [config.flops_per_token(n) / 1e12 for n in (4096, 8192, 32_768, 131_072)]
    np.testing.assert_allclose(got, [0.820, 0.849, 1.019, 1.700], atol=5e-4)
    whole = config.flops_per_token(4096, causal=False) - config.flops_per_token(4096)
    assert whole == 12 * 94 * 96 * 128 * 2048


def test_flops_count_the_products_of_one_token():
    """Against the shapes of the tree: 6 per weight of a product, the head also where tied."""
    config = preset("debug", tie_embeddings=True, qkv_bias=True, out_bias=True)
    weights = [
        int(np.prod(x.shape))
        for path, x in jax.tree_util.tree_leaves_with_path(abstract_parameters(config))
        if path[-1].key in ("kernel", "embedding")
    ]
    attention = 12 * 2 * 4 * 12 * 100
    assert config.flops_per_token(100, causal=False) == 6 * sum(weights) + attention


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_kv_heads": 3}, "num_heads=4 must be a multiple of num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"norm_scheme": "post_ln"}, "norm_scheme='post_ln' is not one of pre_ln, sandwich, dssn"),
        ({"rope_layout": "pairs"}, "half, interleaved"),
        ({"dtype": "int8"}, "dtype='int8'"),
        (
            {"remat": "some"},
            "remat='some' is not a policy; allowed: none, nothing, attention, dots",
        ),
        ({"loss_chunk": -1}, "loss_chunk=-1"),
    ],
)
def test_values_that_do_not_fit(changes, message):
    with pytest.raises(ModelConfigError, match=message):
        preset("debug", **changes)


def test_errors_carry_the_key_when_resolved_from_a_mapping():
    values = dataclasses.asdict(preset("debug"))
    assert resolve(DecoderConfig, values) == preset("debug")
    values["rope_scaling"] = {"factor": 8.0}
    assert resolve(DecoderConfig, values).rope_scaling.original_length == 8192
    with pytest.raises(ConfigError, match="--config.model: head_dim=3 must be even"):
        resolve(DecoderConfig, values | {"head_dim": 3}, path="--config.model")
    with pytest.raises(ConfigError, match="Did you mean 'dssn'"):
        resolve(DecoderConfig, values | {"norm_scheme": "dsn"}, path="--config.model")
    with pytest.raises(ModelConfigError, match="Did you mean 'ultra_135b'"):
        preset("ultra_135")


def test_ultra_is_the_report_s():
    config = PRESETS["ultra_135b"]
    assert (config.num_layers, config.hidden_dim, config.mlp_dim) == (94, 12_288, 28_672)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (96, 8, 128)
    assert config.vocab_size == 153_376 and config.norm_scheme == "dssn" and config.init == "tiny"
    assert not config.tie_embeddings and not config.qk_norm and not config.qkv_bias


def test_rope_frequencies_of_the_long_context_base():
    """The slowest pair of a 128-wide head at base 2.56e7 turns once in about 1.2e8 positions."""
    frequency = rope_frequencies(128, 2.56e7)
    assert frequency[0] == 1 and len(frequency) == 64
    assert 2 * np.pi / frequency[-1] == pytest.approx(2 * np.pi * 2.56e7 ** (126 / 128))
