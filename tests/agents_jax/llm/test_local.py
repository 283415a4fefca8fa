"""The local engine behind the interface, against the NumPy decoder of the engine's tests."""

import dataclasses
import json
import threading

import numpy as np
import pytest

from agents_jax.llm import (
    IMPLEMENTATIONS,
    BatchError,
    GenerateRequest,
    HiddenStatesRequest,
    InvalidRequest,
    LanguageModel,
    MissingCapability,
    RecordedModel,
    ScoreRequest,
    assistant,
    user,
)
from agents_jax.llm.local import LocalModel
from pangu_jax.inference import Completion

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tiny():
    from tiny_model import tiny_model

    return tiny_model()


@pytest.fixture(scope="module")
def engine(tiny):
    from tiny_model import random_adapter

    from pangu_jax.inference.config import EngineConfig
    from pangu_jax.inference.engine import Engine

    special = dataclasses.replace(tiny.tokenizer.special, chat_template=CHATML)
    model = tiny._replace(tokenizer=tiny.tokenizer._replace(special=special))
    config = EngineConfig(context_length=64, max_rows=2, page_size=8, prefill_tokens=32)
    adapters = [random_adapter("expert", tiny.config, 1)]
    return Engine(model, config, adapters=adapters, model_name="tiny")


@pytest.fixture
def model(engine):
    model = LocalModel(engine)
    yield model
    model.close()
    assert engine.idle and not engine._done  # nothing is left behind


def reference(tiny, ids):
    from tiny_model import log_probabilities

    return log_probabilities(ids, tiny)


def encode(tiny, text):
    return tiny.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids


def test_capabilities_are_the_declared_ones(model):
    assert model.capabilities.names == IMPLEMENTATIONS["local"]
    assert model.capabilities.max_context == 64


def test_scores_are_those_of_the_reference(tiny, model):
    requests = [
        ScoreRequest(prompt="Is it so? ", continuations=("Yes", "No", "thin")),
        ScoreRequest(prompt="at", continuations=("he", "x")),  # 'th' is one token
        ScoreRequest(messages=[user("wet?")], continuations=("Yes",)),
    ]
    answers = model.score(requests)
    assert [a.method for a in answers] == ["joint", "separate", "joint"]
    prompts = ["Is it so? ", "at", "<user>wet?\n<assistant>"]
    for prompt, request, answer in zip(prompts, requests, answers, strict=True):
        before = encode(tiny, prompt)
        for text, score in zip(request.continuations, answer.continuations, strict=True):
            after = encode(tiny, text)
            expected = reference(tiny, before + after)
            each = [expected[len(before) - 1 + i, token] for i, token in enumerate(after)]
            assert "".join(score.tokens) == text
            np.testing.assert_allclose(score.token_logprobs, each, atol=2e-4)
            np.testing.assert_allclose(score.logprob, sum(each), atol=1e-3)


def test_greedy_answers_and_logprobs_are_those_of_the_reference(tiny, model):
    request = GenerateRequest(prompt="Once upon", max_tokens=6, logprobs=2)
    (answer,) = model.generate([request])
    ids = encode(tiny, "Once upon")
    for token in answer.logprobs:
        row = reference(tiny, ids)[-1]
        best = int(row.argmax())
        np.testing.assert_allclose(token.logprob, row[best], atol=2e-4)
        np.testing.assert_allclose([v for _, v in token.top], np.sort(row)[-2:][::-1], atol=2e-4)
        ids.append(best)
    assert answer.usage.completion_tokens == len(answer.logprobs) > 0
    assert answer.finish_reason in ("length", "stop")


def test_samples_differ_and_do_not_depend_on_the_batch(model):
    request = GenerateRequest(prompt="Once", n=4, temperature=1.5, max_tokens=8)
    seeded = dataclasses.replace(request, seed=3)
    together = model.generate([request, seeded, GenerateRequest(prompt="else", max_tokens=3)])
    alone = model.generate([seeded])[0], model.generate([request])[0]
    assert together[0].texts == alone[1].texts and together[1].texts == alone[0].texts
    assert len(set(together[0].texts)) == 4 and len(set(together[1].texts)) == 4
    third = model.generate([dataclasses.replace(seeded, n=1, sample=2)])[0]
    assert third.text == together[1].texts[2]


def test_hidden_states_make_the_next_tokens(tiny, model):
    """The stream after the last block and the norm, times the embedding, is the distribution."""
    text, continuation = "A prompt", "and more"
    (whole, last, early) = model.hidden_states(
        [
            HiddenStatesRequest(
                prompt=text, continuation=continuation, normed=True, positions="continuation"
            ),
            HiddenStatesRequest(prompt=text + continuation, layers=(-1, 0), normed=True),
            HiddenStatesRequest(prompt=text, layers=(0,), positions=(0, 2)),
        ]
    )
    ids = encode(tiny, text + continuation)
    count = len(encode(tiny, continuation))
    assert whole.values.shape == (1, count, 32) and whole.values.dtype == np.float32
    assert "".join(whole.tokens) == continuation
    embedding = np.asarray(tiny.params["embed"]["embedding"], np.float64)
    logits = whole.values[0].astype(np.float64) @ embedding.T
    logits -= logits.max(-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprobs, reference(tiny, ids)[-count:], atol=1e-3)
    np.testing.assert_allclose(last.values[0, 0], whole.values[0, -1], atol=1e-5)
    np.testing.assert_allclose(early.values[0, 1], embedding[encode(tiny, text)[2]], atol=1e-6)


def test_adapters_change_the_answer(model):
    plain = {"prompt": "Once upon", "continuations": ("a", "b")}
    base, zero, half = model.score(
        [
            ScoreRequest(**plain),
            ScoreRequest(**plain, adapters={"expert": 0.0}),
            ScoreRequest(**plain, adapters={"expert": 0.5}),
        ]
    )
    np.testing.assert_allclose(base.logprobs, zero.logprobs, atol=1e-5)
    assert abs(base.logprobs[0] - half.logprobs[0]) > 1e-2
    (hidden, other) = model.hidden_states(
        [
            HiddenStatesRequest(prompt="x y", adapters={"expert": 1.0}),
            HiddenStatesRequest(prompt="x y"),
        ]
    )
    assert np.abs(hidden.values - other.values).max() > 1e-2
    with pytest.raises(BatchError, match="'nobody'.*expert"):
        model.score([ScoreRequest(**plain, adapters={"nobody": 1.0})])


def test_one_bad_request_does_not_spoil_the_batch(model):
    long = GenerateRequest(prompt="x" * 100, max_tokens=3)
    good = [GenerateRequest(prompt=f"p{i}", max_tokens=3) for i in range(6)]
    expected = [a.text for a in model.generate(good)]
    answers = model.generate([*good[:3], long, *good[3:]], on_error="return")
    assert answers[3].error.kind == "bad_request" and "100 tokens" in answers[3].error.message
    assert [a.text for a in answers if not a.error] == expected
    hidden = [HiddenStatesRequest(prompt=p, positions=(1,)) for p in ("ab", "c", "de")]
    found = model.hidden_states(hidden, on_error="return")
    assert [f.error is None for f in found] == [True, False, True]
    assert "position 1 is outside of the 1 tokens" in found[1].error.message
    deep = [HiddenStatesRequest(prompt="a", layers=(9,)), HiddenStatesRequest(prompt="a")]
    assert [f.error is None for f in model.hidden_states(deep, on_error="return")] == [False, True]


def test_the_first_failure_cancels_the_rest(model):
    requests = [GenerateRequest(prompt=f"p{i}", max_tokens=40) for i in range(30)]
    requests.insert(2, GenerateRequest(prompt="x" * 100, max_tokens=3))
    with pytest.raises(BatchError, match="100 tokens") as caught:
        model.generate(requests)
    kinds = [r.error.kind if r.error else None for r in caught.value.results]
    assert kinds[2] == "bad_request" and kinds.count("not_asked") > 20
    # The engine goes on.
    assert model.generate([GenerateRequest(prompt="a", max_tokens=2)])[0].error is None


def test_a_batch_that_is_given_up_leaves_the_engine_free(model):
    class Enough(Exception):
        pass

    told = threading.Event()

    def on_answer(part, response):
        told.set()
        raise Enough

    import asyncio

    requests = [GenerateRequest(prompt=f"p{i}", max_tokens=30) for i in range(20)]
    with pytest.raises(Enough):
        asyncio.run(model.agenerate(requests, on_answer=on_answer))
    assert told.is_set()
    assert model.generate([GenerateRequest(prompt="a", max_tokens=2)])[0].error is None


def test_recorded_as_answers_come(tmp_path, model):
    requests = [GenerateRequest(prompt=f"p{i}", max_tokens=3 + i) for i in range(6)]
    with RecordedModel(tmp_path / "run.jsonl", model) as recorded:
        fresh = recorded.generate(requests)
        assert recorded.identity == {"kind": "local", "model": "tiny", "weights": "float32"}
    with RecordedModel(tmp_path / "run.jsonl", mode="replay") as recorded:
        assert [a.texts for a in recorded.generate(requests)] == [a.texts for a in fresh]


class FakeEngine:
    """Says one text to everything; keeps the requests."""

    model_name, context_length = "fake", 99

    def __init__(self, tokenizer, text="", finish="stop", error=None):
        self.tokenizer, self.requests = tokenizer, []
        self.text, self.finish, self.error = text, finish, error

    def completions(self, requests):
        for request in reversed(list(requests)):  # not in order, as a real one
            self.requests.append(request)
            yield Completion(
                id=request.id, text=self.text, token_ids=(5,), finish_reason=self.finish,
                prompt_tokens=len(request.prompt_ids), error=self.error,
            )  # fmt: skip

    def cancel(self, request_id):
        return None

    def take(self, request_id):
        raise AssertionError("nothing was cancelled")


TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},
}


@pytest.fixture
def chatting(tiny):
    special = dataclasses.replace(tiny.tokenizer.special, chat_template=CHATML)
    return tiny.tokenizer._replace(special=special)


def test_tools_go_in_and_calls_come_out(chatting):
    fake = FakeEngine(chatting, '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
    with LocalModel(fake) as model:
        (answer,) = model.generate([GenerateRequest.ask("2+2?", tools=[TOOL])])
        forced = GenerateRequest.ask("2+2?", tools=[TOOL], tool_choice="required")
        model.generate([forced])
        plain = model.generate([GenerateRequest.ask("2+2?")])[0]
    assert answer.finish_reason == "tool_calls" and answer.text == ""
    assert (answer.tool_calls[0].name, answer.tool_calls[0].parse()) == ("add", {"a": 1})
    prompt = chatting.tokenizer.decode(list(fake.requests[0].prompt_ids))
    assert '"name": "add"' in prompt and prompt.endswith("<user>2+2?\n<assistant>")
    assert fake.requests[0].sampling.grammar is None
    schema = json.loads(fake.requests[1].sampling.grammar.source)
    assert schema["properties"]["name"] == {"const": "add"}
    assert plain.tool_calls == () and plain.text == fake.text


def test_settings_reach_the_engine(chatting):
    fake = FakeEngine(chatting, "x")
    request = GenerateRequest(
        prompt="p", max_tokens=7, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, seed=11,
        repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25, stop=("a", "b"),
        logprobs=4, regex="x+",
    )  # fmt: skip
    with LocalModel(fake) as model:
        model.generate([request])
    sampling = fake.requests[0].sampling
    for name in (
        "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "repetition_penalty",
        "presence_penalty", "frequency_penalty", "stop", "logprobs",
    ):  # fmt: skip
        assert getattr(sampling, name) == getattr(request, name), name
    assert (sampling.grammar.kind, sampling.grammar.source) == ("regex", "x+")


def test_what_the_local_engine_refuses(chatting, tiny):
    with LocalModel(FakeEngine(tiny.tokenizer, "x")) as model:  # no chat template
        with pytest.raises(MissingCapability, match="chat"):
            model.generate([GenerateRequest.ask("x")])
        assert isinstance(model, LanguageModel)
    with LocalModel(FakeEngine(chatting, "x")) as model:
        for request, words in (
            (GenerateRequest(prompt="p", extra={"a": 1}), "extra"),
            (GenerateRequest(prompt="p", logprobs=50), "logprobs=50"),
            (GenerateRequest(prompt="\ud800"), "surrogate"),
            (GenerateRequest.ask("x", tools=[{"type": "f"}]), "tools"),
            (GenerateRequest.ask("x", tools=[TOOL], tool_choice="sub"), "tool_choice"),
            (GenerateRequest(messages=[user("a"), {"role": "dog"}]), "dog"),
            (
                GenerateRequest.ask("x", tools=[TOOL], tool_choice="required", regex="a"),
                "forces a call",
            ),
        ):
            with pytest.raises(BatchError, match=words) as caught:
                model.generate([request])
            assert isinstance(caught.value.__cause__, InvalidRequest)
    for finish, error in (("error", "out of memory"), ("cancelled", None)):
        with LocalModel(FakeEngine(chatting, "x", finish, error)) as model:
            with pytest.raises(BatchError, match=error or "cancelled"):
                model.generate([GenerateRequest(messages=[user("a"), assistant("b"), user("c")])])
