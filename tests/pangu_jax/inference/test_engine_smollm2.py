"""The engine with a real model: SmolLM2-135M-Instruct against the decoder that trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import assert_same

from pangu_jax.data.wheel import WheelError
from pangu_jax.inference import Request, SamplingParams
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine
from pangu_jax.inference.hidden_states import hidden_states
from pangu_jax.models import Decoder
from pangu_jax.weights import load_weights

pytestmark = pytest.mark.slow
TEXTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "def fibonacci(n):\n    ",
)
CONFIG = EngineConfig(context_length=128, max_rows=4, page_size=16, prefill_tokens=32)


@pytest.fixture(scope="module")
def model():
    try:
        return load_weights("smollm2")
    except WheelError as error:
        pytest.skip(f"SmolLM2 is neither cached nor to be had: {error}")


@pytest.fixture(scope="module")
def requests(model):
    return [
        Request(
            id=f"r{n}", prompt_ids=tuple(model.tokenizer.tokenizer.encode(text).ids),
            sampling=SamplingParams(max_tokens=24, logprobs=5, ignore_eos=True),
        )
        for n, text in enumerate(TEXTS)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def answers(model, requests):
    return Engine(model, CONFIG).generate(requests)


def log_probabilities(model, tokens):
    """(T, V), by the decoder over the whole text at once, in float32."""
    logits = jax.jit(Decoder(model.config).apply)(
        {"params": model.params}, jnp.asarray([tokens], jnp.int32)
    )
    return np.asarray(jax.nn.log_softmax(logits[0]), np.float64)


def test_log_probabilities_are_those_of_the_decoder(model, requests, answers):
    for asked, done in zip(requests, answers, strict=True):
        start = len(asked.prompt_ids) - 1
        full = log_probabilities(model, [*asked.prompt_ids, *done.token_ids])
        for index, entry in enumerate(done.logprobs):
            row = full[start + index]
            np.testing.assert_allclose(entry.logprob, row[entry.token_id], atol=2e-3)
            assert entry.logprob > row.max() - 2e-3
    assert "Paris" in answers[0].text


def test_alone_is_as_together(model, requests, answers):
    engine = Engine(model, CONFIG)
    for asked, done in zip(requests[:2], answers[:2], strict=True):
        (alone,) = engine.generate([asked])
        assert alone.token_ids == done.token_ids
        np.testing.assert_allclose(
            [x.logprob for x in alone.logprobs], [x.logprob for x in done.logprobs], atol=2e-3
        )
        (again,) = engine.generate([asked])
        assert_same(again, alone)


def test_int8_says_nearly_the_same(model, answers, requests):
    """Scores of the float32 answers; the weights' rounding is all that differs."""
    engine = Engine(model, EngineConfig(**{**vars(CONFIG), "weights": "int8"}))
    scored = [
        Request(
            id=asked.id, prompt_ids=(*asked.prompt_ids, *done.token_ids),
            sampling=SamplingParams(max_tokens=0, prompt_logprobs_from=len(asked.prompt_ids)),
        )
        for asked, done in zip(requests, answers, strict=True)
    ]  # fmt: skip
    for done, rounded in zip(answers, engine.generate(scored), strict=True):
        a = np.asarray([x.logprob for x in done.logprobs])
        b = np.asarray([x.logprob for x in rounded.prompt_logprobs])
        assert 0 < np.abs(a - b).mean() < 0.1


@pytest.mark.parametrize("weights,close", [("float32", 1e-5), ("int8", 1e-2)])
def test_hidden_states_over_the_cache_are_those_of_whole_texts(model, requests, weights, close):
    """Prompts of known pages, read in chunks; int8 rounds activations in each of 30 blocks."""
    engine = Engine(model, EngineConfig(**{**vars(CONFIG), "weights": weights}))
    ids = [token for asked in requests for token in asked.prompt_ids]
    texts = [ids[:count] for count in (len(ids), 32, 17, 1)]
    ask = dict(layers=(0, 15, -2, -1), positions=[-1], normed=True)
    expected = hidden_states(engine.model, engine.weights, texts, **ask)
    for known in (False, True):
        before = engine.statistics.cached_tokens
        found = engine.hidden_states(texts, **ask)
        assert (engine.statistics.cached_tokens - before >= 32 + 16 + 16) or not known
        scale = np.abs(expected).max(-1, keepdims=True)  # of each text and layer
        np.testing.assert_allclose(found / scale, expected / scale, atol=close)
