"""config.json of Hugging Face directories to a DecoderConfig and back, and their tensor names.

Families: Llama, Qwen2 (q, k, v biases), Qwen3 (norms on q and k), and openPangu's dense model,
which with `sandwich_norm` has four norms per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pangu_jax.models.config import DecoderConfig, ModelConfigError, RopeScaling
from pangu_jax.weights.errors import WeightsError

PANGU = "PanguEmbeddedForCausalLM"
ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", PANGU)
# For a config.json that was written without a model and so names no architecture.
_OF_MODEL_TYPE = dict(zip(("llama", "qwen2", "qwen3", "PanguEmbedded"), ARCHITECTURES, strict=True))
# What transformers takes where a Qwen3 config.json leaves out head_dim, whatever the hidden size.
_QWEN3_HEAD_DIM = 128

_LAYER = "model.layers.{}."
_COMMON = {
    "embed/embedding": "model.embed_tokens.weight",
    "layers/attn_norm/scale": _LAYER + "input_layernorm.weight",
    **{
        f"layers/attn/{name}/{ours}": _LAYER + f"self_attn.{name}_proj.{theirs}"
        for name in "qkvo"
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    },
    "layers/attn/q_norm/scale": _LAYER + "self_attn.q_norm.weight",
    "layers/attn/k_norm/scale": _LAYER + "self_attn.k_norm.weight",
    **{
        f"layers/mlp/{name}/kernel": _LAYER + f"mlp.{name}_proj.weight"
        for name in ("gate", "up", "down")
    },
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}
# The same file name means two things: with two norms per block `post_attention_layernorm` stands
# before the MLP, with four it stands on attention's output.
_TWO_NORMS = {"layers/mlp_norm/scale": _LAYER + "post_attention_layernorm.weight"}
_FOUR_NORMS = {
    "layers/post_attn_norm/scale": _LAYER + "post_attention_layernorm.weight",
    "layers/mlp_norm/scale": _LAYER + "pre_mlp_layernorm.weight",
    "layers/post_mlp_norm/scale": _LAYER + "post_mlp_layernorm.weight",
}
# What training needs and inference does not; no published config.json has a place for it.
_OWN = ("norm_scheme", "sandwich_gamma", "c_attn", "c_mlp", "init", "embedding_std")


def tensor_names(config: DecoderConfig) -> dict[str, str]:
    """Our parameter paths to Hugging Face tensor names ('{}' is the layer's number)."""
    return _COMMON | (_FOUR_NORMS if config.has_post_norms else _TWO_NORMS)


def config_from_hf(values: Mapping[str, Any], source: str) -> DecoderConfig:
    """DecoderConfig of a config.json.

    Args:
      values: the parsed file. source: its path, for messages.

    Raises:
      WeightsError: unknown architecture, a missing key, or a feature that this decoder lacks.
    """
    named = values.get("architectures") or [_OF_MODEL_TYPE.get(values.get("model_type"), "(none)")]
    architecture = named[0]
    if architecture not in ARCHITECTURES:
        raise WeightsError(
            f"{source}: architecture {architecture!r} is unknown; read are "
            f"{', '.join(ARCHITECTURES)}."
        )
    _check_features(values, source)
    try:
        return _config(values, source, architecture)
    except ModelConfigError as error:
        raise WeightsError(f"{source}: {error}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{source}: a value has the wrong type ({error}).") from error


def _check_features(values, source) -> None:
    """Refuses what would be another model here; keys that only training reads are left alone."""
    if values.get("hidden_act", "silu") != "silu":
        _refuse(source, "hidden_act", values["hidden_act"], "'silu'")
    # sliding_window and max_window_layers alone mean nothing: Qwen2 writes them and turns them off.
    for key in ("mlp_bias", "use_sliding_window"):
        if values.get(key):
            _refuse(source, key, values[key], "false")
    kinds = values.get("layer_types") or ()
    strange = sorted({str(kind) for kind in kinds} - {"full_attention"})
    if strange:
        _refuse(source, "layer_types", strange, "'full_attention' in every layer")
    if values.get("quantization_config"):
        _refuse(source, "quantization_config", "(present)", "unquantised tensors")


def _config(values, source, architecture) -> DecoderConfig:
    def need(key):
        if values.get(key) is None:
            raise WeightsError(f"{source} lacks the key {key!r}.")
        return values[key]

    heads = need("num_attention_heads")
    pangu, qwen2, qwen3 = (
        architecture == name for name in (PANGU, "Qwen2ForCausalLM", "Qwen3ForCausalLM")
    )
    bias = bool(values.get("attention_bias", False) or (pangu and values.get("bias", False)))
    sandwich = pangu and bool(values.get("sandwich_norm", False))
    own = values.get("pangu_jax")
    own = {key: own[key] for key in _OWN if key in own} if isinstance(own, Mapping) else {}
    if own.get("norm_scheme", "pre_ln") == "pre_ln" or not sandwich:
        # Sandwich and DSSN differ in how they start, not in what they compute.
        own["norm_scheme"] = "dssn" if sandwich else "pre_ln"
    if "embedding_std" not in own and values.get("initializer_range") is not None:
        own["embedding_std"] = float(values["initializer_range"])
    head_dim = values.get("head_dim") or (
        _QWEN3_HEAD_DIM if qwen3 else need("hidden_size") // heads
    )
    base, scaling = _rope(values, source)
    return DecoderConfig(
        vocab_size=need("vocab_size"),
        num_layers=need("num_hidden_layers"),
        hidden_dim=need("hidden_size"),
        mlp_dim=need("intermediate_size"),
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        norm_eps=float(need("rms_norm_eps")),
        rope_base=base,
        rope_scaling=scaling,
        qkv_bias=bias or qwen2,
        out_bias=bias and not qwen2,
        qk_norm=qwen3,
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        **({"init": "traditional"} | own),
    )


def config_to_hf(config: DecoderConfig, *, dtype: str, max_length: int) -> dict[str, Any]:
    """config.json that `transformers` reads (Llama, Qwen2, Qwen3), or openPangu's for four norms.

    Args:
      config: of the decoder. dtype: of the tensors. max_length: longest context, in tokens.

    Raises:
      WeightsError: a combination that no known family has.
    """
    if config.has_post_norms and not config.qk_norm and config.qkv_bias == config.out_bias:
        architecture, model_type = PANGU, "PanguEmbedded"
    elif config.has_post_norms or (config.qk_norm and config.qkv_bias != config.out_bias):
        architecture = None
    elif config.qk_norm:
        architecture, model_type = "Qwen3ForCausalLM", "qwen3"
    elif config.qkv_bias == config.out_bias:
        architecture, model_type = "LlamaForCausalLM", "llama"
    else:
        architecture, model_type = "Qwen2ForCausalLM", "qwen2"
    if architecture is None or (config.out_bias and not config.qkv_bias):
        raise WeightsError(
            f"No Hugging Face family has norm_scheme={config.norm_scheme!r} with "
            f"qkv_bias={config.qkv_bias}, out_bias={config.out_bias}, qk_norm={config.qk_norm}."
        )
    values: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "initializer_range": config.embedding_std,
        "pangu_jax": {key: getattr(config, key) for key in _OWN},
    }
    if architecture != "Qwen2ForCausalLM":
        values["attention_bias"] = config.qkv_bias
    if architecture == PANGU:
        values |= {"sandwich_norm": True, "bias": config.qkv_bias}
    if config.rope_scaling is not None:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_length,
        }
    return values


def _rope(values, source) -> tuple[float, RopeScaling | None]:
    """Both spellings: rope_theta beside rope_scaling, or one group rope_parameters."""
    group = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(group, Mapping) or any(isinstance(each, Mapping) for each in group.values()):
        _refuse(source, "rope_parameters", group, "one group of settings for all layers")
    share = group.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1
    if share != 1:
        _refuse(source, "partial_rotary_factor", share, "1")
    base = values.get("rope_theta") or group.get("rope_theta")
    # Directories older than the key mean the base of RoFormer.
    base = 10_000.0 if base is None else float(base)
    kind = group.get("rope_type", group.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        _refuse(source, "rope_type", kind, "'default' or 'llama3'")
    try:
        return base, RopeScaling(
            factor=float(group["factor"]),
            low_freq_factor=float(group["low_freq_factor"]),
            high_freq_factor=float(group["high_freq_factor"]),
            original_length=int(group["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise WeightsError(f"{source}: rope_scaling lacks the key {error.args[0]!r}.") from error


def _refuse(source, key, value, allowed):
    raise WeightsError(
        f"{source}: {key}={value!r} is not supported by this decoder, only {allowed}."
    )
