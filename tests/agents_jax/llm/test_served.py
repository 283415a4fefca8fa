"""The same tiny model here and behind our own HTTP server: the method's code cannot tell."""

import dataclasses

import numpy as np
import pytest

from agents_jax.llm import (
    EndpointConfig,
    EndpointModel,
    GenerateRequest,
    RetryPolicy,
    ScoreRequest,
    user,
)
from agents_jax.llm.local import LocalModel

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow  # two engines compile

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def both():
    from scripted_engine import RunningServer
    from tiny_model import random_adapter, tiny_model

    from pangu_jax.inference.async_engine import EngineThread
    from pangu_jax.inference.config import EngineConfig
    from pangu_jax.inference.engine import Engine

    tiny = tiny_model()
    special = dataclasses.replace(tiny.tokenizer.special, chat_template=CHATML)
    loaded = tiny.tokenizer._replace(special=special)
    tiny = tiny._replace(tokenizer=loaded)
    config = EngineConfig(context_length=64, max_rows=2, page_size=8, prefill_tokens=32)

    def engine():
        adapters = [random_adapter("expert", tiny.config, 1)]
        return Engine(tiny, config, adapters=adapters, model_name="tiny")

    with RunningServer(EngineThread(engine()), loaded, adapters=("expert",)) as server:
        settings = EndpointConfig(
            base_url=server.url, model="tiny", server="pangu", retry=RetryPolicy(max_attempts=1)
        )
        with EndpointModel(settings) as remote, LocalModel(engine()) as local:
            yield local, remote


def test_scores(both):
    requests = [
        ScoreRequest(prompt="Is it so? ", continuations=("Yes", "No", "thin")),
        ScoreRequest(prompt="Is it so? ", continuations=("Yes",), adapters={"expert": 0.5}),
    ]
    local, remote = (model.score(requests) for model in both)
    for here, there in zip(local, remote, strict=True):
        assert (here.method, there.method) == ("joint", "echo")
        for a, b in zip(here.continuations, there.continuations, strict=True):
            assert a.tokens == b.tokens
            np.testing.assert_allclose(a.token_logprobs, b.token_logprobs, atol=1e-4)
    assert abs(local[0].logprobs[0] - local[1].logprobs[0]) > 1e-2


def test_answers(both):
    requests = [
        GenerateRequest(prompt="Once upon", max_tokens=6, logprobs=2),
        GenerateRequest(prompt="Once upon", max_tokens=6, temperature=1.3, n=2, seed=5),
        GenerateRequest(
            messages=[user("hi")], max_tokens=5, temperature=1.0, seed=2, top_k=5, min_p=0.01
        ),
    ]
    for here, there in zip(*(model.generate(requests) for model in both), strict=True):
        assert here.texts == there.texts
        assert [c.finish_reason for c in here.choices] == [c.finish_reason for c in there.choices]
        assert here.usage.prompt_tokens == there.usage.prompt_tokens
        np.testing.assert_allclose(
            [t.logprob for t in here.logprobs], [t.logprob for t in there.logprobs], atol=1e-4
        )


def test_refusals(both):
    long = GenerateRequest(prompt="x" * 100, max_tokens=3)
    for model in both:
        (answer,) = model.generate([long], on_error="return")
        assert answer.error.kind == "bad_request" and "100" in answer.error.message
