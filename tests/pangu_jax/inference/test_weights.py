"""Weights in the types of inference, and engines whose weights are rounded or adapted."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import assert_same, engine_of, request
from tiny_model import (
    VOCAB,
    config_of,
    log_probabilities,
    log_softmax,
    prompt,
    random_adapter,
    tiny_model,
)

from pangu_jax.inference import RequestError
from pangu_jax.inference.weights import WEIGHT_TYPES, look_up, num_bytes, prepare_weights
from pangu_jax.models import Decoder
from pangu_jax.models.lora import LoraError, bind, fingerprint, select
from pangu_jax.models.projection import FlatKernel
from pangu_jax.models.quantized import Int8Kernel

SHAPES = dict(context_length=32, prefix_caching=True)


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
@pytest.mark.parametrize("variant", ["biases", "dssn_qk_norm"])
def test_every_parameter_is_there_once_in_its_layer(variant, weights):
    model = tiny_model(variant)
    prepared = prepare_weights(model.config, model.params, weights)
    assert len(prepared["layers"]) == model.config.num_layers
    assert (prepared["head"] is None) == model.config.tie_embeddings
    step = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11}.get(weights)  # unit roundoff

    def same(path, found, stored):
        if isinstance(found, Int8Kernel):
            assert found.mode == ("dynamic" if weights == "int8_dynamic" else "weight_only")
            largest = np.abs(np.asarray(stored)).max()
            assert np.abs(np.asarray(found.dequantized()) - stored).max() <= largest / 127
        elif isinstance(found, FlatKernel):
            assert found.shape == stored.shape and found.matrix.dtype == weights
            matrix = np.asarray(found.matrix, np.float32).reshape(stored.shape)
            np.testing.assert_allclose(matrix, stored, rtol=step, atol=1e-7)
        else:  # norms and biases
            np.testing.assert_allclose(
                np.asarray(found, np.float32), stored, rtol=step or 0, err_msg=str(path)
            )

    for layer, tree in enumerate(prepared["layers"]):
        stored = jax.tree.map(lambda x, layer=layer: x[layer], model.params["layers"])
        jax.tree_util.tree_map_with_path(
            same, tree, stored, is_leaf=lambda x: isinstance(x, FlatKernel | Int8Kernel)
        )
    tokens = jnp.asarray([[0, 5], [VOCAB - 1, 7]])
    rows = look_up(prepared["embedding"], tokens, "float32")
    stored = model.params["embed"]["embedding"][np.asarray(tokens)]
    atol = np.abs(stored).max() / 254 * 1.01 if step is None else 1e-7
    np.testing.assert_allclose(rows, stored, rtol=step or 0, atol=atol)


def test_bytes_shrink_with_the_type():
    model = tiny_model()
    sizes = {w: num_bytes(prepare_weights(model.config, model.params, w)) for w in WEIGHT_TYPES}
    assert sizes["bfloat16"] == sizes["float16"] < 0.52 * sizes["float32"] + 4096
    assert sizes["int8"] == sizes["int8_dynamic"] < sizes["bfloat16"]
    # One byte per weight, four per output feature.
    assert sizes["float32"] == 4 * model.config.num_parameters()


def test_unknown_types_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="weights='int3' is unknown; allowed: float32, bfloat16"):
        prepare_weights(model.config, model.params, "int3")


# Relative rounding of one product, root mean square: weights (and activations, where rounded) of
# 32 normal numbers, whose largest is about 2.2 deviations; an int8 step is a 127th of that, and
# uniform errors are 1 / sqrt(12) of a step. Log-probabilities of this model vary by about 3.5, and
# about 14 products lie one after the other, whose errors add in quadrature.
ROUNDING = {"bfloat16": 0.0016, "float16": 0.0002, "int8": 0.005, "int8_dynamic": 0.007}
EXPECTED = {weights: 14**0.5 * 3.5 * error for weights, error in ROUNDING.items()}


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int8_dynamic"])
def test_rounded_weights_score_nearly_as_float32(weights):
    """Log-probabilities of a text, off by what the roundings give, twice that at most."""
    text = prompt(31, seed=2)
    asked = request("r", text, max_tokens=0, prompt_logprobs_from=1, logprobs=0)
    (done,) = engine_of(weights=weights, **SHAPES).generate([asked])
    full = log_probabilities(text, tiny_model())
    expected = full[np.arange(30), text[1:]]
    error = rms(np.asarray([x.logprob for x in done.prompt_logprobs]) - expected)
    assert EXPECTED[weights] / 8 < error < 2 * EXPECTED[weights]


def test_int8_is_the_model_of_its_dequantised_weights():
    """What int8 changes is the weights; the products add next to nothing."""
    model = tiny_model("biases")
    rounded = prepare_weights(model.config, model.params, "int8")

    def dequantized(path, stored):
        keys = [key.key for key in path]
        if keys[0] == "embed":
            return np.asarray(rounded["embedding"].dequantized()).T
        if keys[-1] != "kernel":
            return stored
        layers = [functools.reduce(lambda t, k: t[k], keys[1:], tree) for tree in rounded["layers"]]
        return np.stack([np.asarray(kernel.dequantized()) for kernel in layers])

    exact = model._replace(params=jax.tree_util.tree_map_with_path(dequantized, model.params))
    asked = request("r", prompt(25), max_tokens=5, prompt_logprobs_from=1)
    (done,) = engine_of("biases", weights="int8", **SHAPES).generate([asked])
    text = [*asked.prompt_ids, *done.token_ids]
    full = log_probabilities(text, exact)
    expected = full[np.arange(29), text[1:]]
    found = [x.logprob for x in (*done.prompt_logprobs, *done.logprobs)]
    np.testing.assert_allclose(found, expected, atol=5e-3)


# ------------------------------------------------------------------ adapters

ADAPTERS = tuple(random_adapter(f"a{n}", config_of(), seed=n, rank=2 + 2 * n) for n in range(2))
CHOICES = [(), (("a0", 1.0),), (("a1", 1.0),), (("a0", 0.5), ("a1", -0.75)), (("a0", 0.0),)]


@functools.cache
def _decoder():
    return jax.jit(Decoder(config_of()).apply)


def adapted_log_probabilities(tokens, choice):
    """(T, V) of the decoder with the adapters bound, as in training."""
    weights = select([a.name for a in ADAPTERS], [choice])
    variables = {"params": tiny_model().params, "lora": bind(ADAPTERS, weights)}
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = _decoder()(variables, jnp.asarray(padded))[0, : len(tokens)]
    return log_softmax(np.asarray(logits, np.float64))


@pytest.fixture(scope="module")
def adapted():
    return engine_of(adapters=ADAPTERS, **SHAPES)


def test_each_request_has_the_adapters_that_it_names(adapted):
    requests = [
        request(n, prompt(19), adapters=choice, max_tokens=8) for n, choice in enumerate(CHOICES)
    ]
    done = adapted.generate(requests)
    for choice, completion in zip(CHOICES, done, strict=True):
        full = adapted_log_probabilities([*prompt(19), *completion.token_ids], choice)
        for index, entry in enumerate(completion.logprobs):
            row = full[18 + index]
            np.testing.assert_allclose(entry.logprob, row[entry.token_id], atol=5e-5)
            assert entry.logprob > row.max() - 5e-5
    assert len({c.token_ids for c in done[:4]}) == 4
    # Prefixes are not shared between adapters; weight 0 is the base.
    assert [c.cached_tokens for c in done] == [0, 0, 0, 0, 16]
    (base,) = engine_of(**SHAPES).generate([requests[0]])
    assert_same(done[0], base)
    assert_same(done[4], base)


def test_prefixes_are_shared_between_requests_of_one_mixture(adapted):
    mixtures = [
        (("a0", 0.25), ("a1", 0.5)),
        (("a1", 0.5), ("a0", 0.25)),
        (("a0", 0.25),),
        (("a0", 0.26), ("a1", 0.5)),
    ]
    cached = []
    for n, mixture in enumerate(mixtures):
        (done,) = adapted.generate([request(n, prompt(20, 1), adapters=mixture, max_tokens=1)])
        cached.append(done.cached_tokens)
    assert cached == [0, 16, 0, 0]


def test_unknown_adapters_and_weights_are_refused(adapted):
    with pytest.raises(RequestError, match="names adapter 'a2'; loaded are: a0, a1"):
        adapted.add(request("r", prompt(3), adapters=(("a2", 1.0),)))
    for weight in (float("nan"), float("inf")):
        with pytest.raises(RequestError, match=f"weight {weight}; a finite number"):
            adapted.add(request("r", prompt(3), adapters=(("a0", weight),)))


def test_adapters_of_another_base_are_refused():
    import dataclasses

    model = tiny_model()
    mine = fingerprint(model.config, model.params)
    engine_of(adapters=[dataclasses.replace(ADAPTERS[0], base_fingerprint=mine)], **SHAPES)
    with pytest.raises(LoraError, match="was trained on the base 0123"):
        engine_of(adapters=[dataclasses.replace(ADAPTERS[0], base_fingerprint="0123")], **SHAPES)
    wide = random_adapter("wide", config_of(hidden_dim=64), seed=0)
    with pytest.raises(LoraError, match="belongs to another"):
        engine_of(adapters=[wide], **SHAPES)
    with pytest.raises(LoraError, match="Two adapters are called 'a0'"):
        engine_of(adapters=[ADAPTERS[0]] * 2, **SHAPES)


def test_adapters_beside_int8_weights():
    """The adapter's own product stays in float32 beside the rounded base."""
    asked = [request(n, prompt(9), adapters=c, max_tokens=4) for n, c in enumerate(CHOICES[:2])]
    done = engine_of(adapters=ADAPTERS, weights="int8", **SHAPES).generate(asked)
    for choice, completion in zip(CHOICES, done, strict=False):
        full = adapted_log_probabilities([*prompt(9), *completion.token_ids], choice)
        expected = [full[8 + i, token] for i, token in enumerate(completion.token_ids)]
        found = np.asarray([x.logprob for x in completion.logprobs])
        assert rms(found - expected) < 2 * EXPECTED["int8"]
