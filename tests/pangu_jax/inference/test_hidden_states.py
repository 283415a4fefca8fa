"""Captured hidden states against the decoder's own capture and the NumPy decoder's last layer."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_model import config_of, parameters, prompt, random_adapter, tiny_model

from pangu_jax.inference import RequestError
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine
from pangu_jax.inference.hidden_states import capture, hidden_states
from pangu_jax.inference.weights import prepare_weights
from pangu_jax.models import Decoder
from pangu_jax.models.lora import bind

TEXTS = [prompt(n, seed=1) for n in (3, 17, 40, 5)]


def reference(config, params, text, lora=None):
    """(layers + 1, T, D) by the decoder that training uses."""
    variables = {"params": params} | ({} if lora is None else {"lora": lora})
    out = Decoder(config).apply(
        variables, np.asarray([text], np.int32), capture=("hidden",), method="run"
    )
    return np.asarray(out.captured["hidden"])[:, 0], np.asarray(out.hidden)[0]


@pytest.mark.parametrize("variant", ["pre_ln", "dssn_qk_norm"])
def test_any_layers_at_any_positions_of_texts_of_any_length(variant):
    config, params = config_of(variant), parameters(config_of(variant))
    weights = prepare_weights(config, params)
    layers, positions = [3, 0, 1], [0, -1, 2]
    found = hidden_states(config, weights, TEXTS, layers=layers, positions=positions, batch_rows=3)
    assert found.shape == (4, 3, 3, config.hidden_dim) and found.dtype == np.float32
    for text, mine in zip(TEXTS, found, strict=True):
        expected, _ = reference(config, params, text)
        np.testing.assert_allclose(mine, expected[layers][:, positions], rtol=1e-4, atol=1e-4)


def test_the_last_layer_may_be_normed():
    config, params = config_of(), parameters(config_of())
    found = hidden_states(
        config, prepare_weights(config, params), TEXTS, layers=[-1], positions=[-1], normed=True
    )
    for text, mine in zip(TEXTS, found, strict=True):
        _, normed = reference(config, params, text)
        np.testing.assert_allclose(mine[0, 0], normed[-1], rtol=1e-4, atol=1e-4)


def test_layers_beyond_the_deepest_are_not_computed():
    """Weights of later layers may be anything, NaN too."""
    config, params = config_of(), parameters(config_of())
    weights = prepare_weights(config, params)
    spoilt = jax.tree.map(lambda x: x * np.nan, weights["layers"][2])
    weights = weights | {"layers": (*weights["layers"][:2], spoilt)}
    ask = dict(positions=[-1])
    assert np.isfinite(hidden_states(config, weights, TEXTS, layers=[0, 2], **ask)).all()
    assert not np.isfinite(hidden_states(config, weights, TEXTS, layers=[3], **ask)).all()


def test_padding_changes_nothing_and_gradients_pass():
    config, params = config_of(), parameters(config_of())
    weights = prepare_weights(config, params)
    tokens = np.asarray([TEXTS[1]], np.int32)
    at = np.asarray([[16]], np.int32)

    def value(tokens, segments):
        return capture(config, weights, tokens, segments, at, layers=(2,))

    alone = value(tokens, np.ones_like(tokens))
    padded = np.pad(tokens, ((0, 0), (0, 15)), constant_values=7)
    segments = (np.arange(32) < 17).astype(np.int32)[None]
    np.testing.assert_allclose(alone, value(padded, segments), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(
        lambda w: capture(config, w, tokens, np.ones_like(tokens), at, layers=(2,)).sum()
    )(weights)
    sizes = [
        max(float(np.abs(x).max()) for x in jax.tree.leaves(layer)) for layer in gradient["layers"]
    ]
    assert sizes[0] > 0 and sizes[1] > 0 and sizes[2] == 0


def test_the_engine_captures_beside_its_requests_and_with_adapters():
    model = tiny_model()
    adapter = random_adapter("a", model.config, seed=4)
    engine = Engine(model, EngineConfig(context_length=64, max_rows=2), adapters=[adapter])
    base = engine.hidden_states(TEXTS, [3], [-1])
    half = engine.hidden_states(TEXTS, [3], [-1], adapters=(("a", 0.5),))
    lora = bind([adapter], np.asarray([[0.5]], np.float32))
    for text, mine, adapted in zip(TEXTS, base, half, strict=True):
        np.testing.assert_allclose(
            mine[0, 0], reference(model.config, model.params, text)[0][3, -1], rtol=1e-4, atol=1e-4
        )
        expected = reference(model.config, model.params, text, lora)[0][3, -1]
        np.testing.assert_allclose(adapted[0, 0], expected, rtol=1e-4, atol=1e-4)
        assert np.abs(mine - adapted).max() > 1e-2


@pytest.mark.parametrize(
    "layers,positions,message",
    [
        ([4], [0], "0 to 3"),
        ([], [0], "at least one"),
        ([1], [3], "no position 3"),
        ([1], [[0], [0]], "4 texts, but 2"),
        ([1], [[0], [0, 1], [0], [0]], "equally many"),
    ],
)
def test_mistakes_are_named(layers, positions, message):
    config = dataclasses.replace(config_of(), num_layers=3)
    weights = prepare_weights(config, parameters(config))
    with pytest.raises(RequestError, match=message):
        hidden_states(config, weights, TEXTS, layers=layers, positions=positions)
    with pytest.raises(RequestError, match="empty"):
        hidden_states(config, weights, [()], layers=[1], positions=[0])
