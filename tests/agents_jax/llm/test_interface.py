"""Batches: order, failures, capabilities, event loops; scripted models answer."""

import asyncio
import random
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.llm import (
    IMPLEMENTATIONS,
    BatchError,
    CallError,
    Capabilities,
    Choice,
    GenerateRequest,
    HiddenStatesRequest,
    InvalidRequest,
    LanguageModel,
    MissingCapability,
    ScoreRequest,
    ScriptedModel,
    ToolCall,
)

ask = GenerateRequest.ask


def echo(request):
    return f"{request.messages[-1]['content']}/{request.sample}"


@settings(max_examples=15)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_order_is_kept_under_random_latencies(count, concurrency, seed):
    rng = random.Random(seed)
    delays = [rng.random() * 0.004 for _ in range(count)]
    model = ScriptedModel(
        echo, delay=lambda r: delays[int(r.messages[0]["content"])], concurrency=concurrency
    )
    requests = [ask(str(i), n=1 + i % 3, temperature=1.0) for i in range(count)]
    answers = model.generate(requests)
    assert [a.texts for a in answers] == [
        tuple(f"{i}/{s}" for s in range(1 + i % 3)) for i in range(count)
    ]


def test_concurrency_is_bounded_over_batches_from_several_threads():
    running, most, lock = 0, 0, threading.Lock()

    async def answer(request):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        await asyncio.sleep(0.002)
        with lock:
            running -= 1
        return "x"

    model = ScriptedModel(answer, concurrency=3)
    threads = [
        threading.Thread(target=model.generate, args=([ask(str(i)) for i in range(10)],))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def test_plain_functions_work_inside_a_running_loop():
    model = ScriptedModel(["a", "b"])

    async def cell():
        first = model.generate([ask("x")])
        second = await model.agenerate([ask("y")])
        return first[0].text, second[0].text

    assert asyncio.run(cell()) == ("a", "b")
    # Another loop afterwards: nothing was bound to the first.
    model = ScriptedModel(["c"])
    assert asyncio.run(model.agenerate([ask("x")]))[0].text == "c"


def test_a_call_from_within_a_callback_is_an_error_not_a_deadlock():
    inner = ScriptedModel(["a"])
    outer = ScriptedModel(lambda request: inner.generate([request])[0].text)
    with pytest.raises(RuntimeError, match="agenerate"):
        outer.generate([ask("x")])


def some_fail(request):
    number = int(request.messages[0]["content"])
    return CallError("server", "broken") if number % 3 == 1 else str(number)


def test_failures_are_returned_in_their_place():
    answers = ScriptedModel(some_fail).generate([ask(str(i)) for i in range(7)], on_error="return")
    assert [a.error is not None for a in answers] == [i % 3 == 1 for i in range(7)]
    assert [a.text for a in answers if not a.error] == ["0", "2", "3", "5", "6"]
    assert answers[1].error.kind == "server"
    with pytest.raises(InvalidRequest, match="broken"):
        _ = answers[1].text


def test_the_first_failure_stops_asking_and_keeps_what_was_answered():
    model = ScriptedModel(some_fail, concurrency=1)
    with pytest.raises(BatchError, match="number 1.*broken") as caught:
        model.generate([ask(str(i)) for i in range(50)])
    results = caught.value.results
    assert results[0].text == "0"
    assert len(model.asked) == 2
    assert {r.error.kind for r in results[2:]} == {"not_asked"}
    assert isinstance(caught.value.__cause__, CallError)


def test_a_fatal_failure_stops_asking_even_where_failures_are_returned():
    model = ScriptedModel(lambda r: CallError("auth", "no key"), concurrency=1)
    answers = model.generate([ask(str(i)) for i in range(9)], on_error="return")
    assert len(model.asked) == 1
    assert [a.error.kind for a in answers] == ["auth"] + ["not_asked"] * 8


def test_some_samples_of_a_request_may_fail():
    model = ScriptedModel(lambda r: CallError("server", "no") if r.sample == 1 else str(r.sample))
    (answer,) = model.generate([ask("x", n=3, temperature=1.0)], on_error="return")
    assert [choice.sample for choice in answer.choices] == [0, 2]
    assert answer.error.kind == "server"


def test_mistakes_in_a_script_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        ScriptedModel(lambda r: 1 / 0).generate([ask("x")], on_error="return")


def test_a_missing_capability_is_named_before_anything_is_asked():
    model = ScriptedModel(["a"], name="small", capabilities=["generate", "chat"])
    with pytest.raises(MissingCapability) as caught:
        model.generate([ask("x"), ask("x", regex="a*", seed=3)])
    text = str(caught.value)
    assert "'small'" in text and "regex, seed" in text and "requests[1]" in text
    assert caught.value.missing == ("regex", "seed")
    assert "local" in text and "server='vllm'" in text and "llama.cpp" not in text
    assert model.asked == []
    with pytest.raises(MissingCapability, match="hidden_states"):
        model.hidden_states([HiddenStatesRequest(prompt="x")])


def test_capabilities_know_their_names():
    with pytest.raises(InvalidRequest, match="telepathy"):
        Capabilities(frozenset({"telepathy"}))
    with pytest.raises(InvalidRequest, match="telepathy"):
        _ = "telepathy" in Capabilities(frozenset())
    assert all(Capabilities(names) for names in IMPLEMENTATIONS.values())


def test_wrong_kinds_of_requests_are_refused():
    model = ScriptedModel(["a"], scores={"a": 0})
    with pytest.raises(InvalidRequest, match=r"requests\[0\].*GenerateRequest"):
        model.generate([ScoreRequest(prompt="x", continuations=("a",))])
    with pytest.raises(InvalidRequest, match="on_error='ignore'"):
        model.generate([ask("x")], on_error="ignore")
    assert model.generate([]) == []


def test_scripted_answers_by_pattern_and_choice():
    call = Choice("", "tool_calls", (ToolCall("f", '{"a": 1}'),))
    model = ScriptedModel({"weather": call, "(?i)HELLO": "hi", ".": lambda r: f"{r.temperature}"})
    first, second, third = model.generate([ask("the weather"), ask("hello"), ask("else")])
    assert first.tool_calls[0].parse() == {"a": 1} and first.finish_reason == "tool_calls"
    assert (second.text, third.text) == ("hi", "0.0")
    with pytest.raises(BatchError, match="used up"):
        ScriptedModel(["one"]).generate([ask("x"), ask("y")])
    with pytest.raises(InvalidRequest, match="no JSON"):
        ToolCall("f", "{").parse()
    with pytest.raises(InvalidRequest, match="no object"):
        ToolCall("f", "[1]").parse()


def test_scripted_scores_and_hidden_states():
    model = ScriptedModel(scores={"Yes": -1.0, "No": (-1.0, -1.0)}, hidden=4)
    (scores,) = model.score([ScoreRequest(prompt="x", continuations=("No", "Yes"))])
    assert scores.logprobs == (-2.0, -1.0) and scores.best == 1
    np.testing.assert_allclose(scores.probabilities()[1], 1 / (1 + np.exp(-1.0)))
    request = HiddenStatesRequest(prompt="x", layers=(1, 2), positions=(-1, -2, -3))
    one, two = model.hidden_states([request, HiddenStatesRequest(prompt="y")])
    assert one.values.shape == (2, 3, 4) and two.values.shape == (1, 1, 4)
    assert np.array_equal(model.hidden_states([request])[0].values, one.values)


def test_implementations_have_the_protocol():
    assert isinstance(ScriptedModel(), LanguageModel)


def test_an_interrupted_wait_leaves_no_calls_behind():
    ended = threading.Event()

    async def answer(request):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.set()
            raise

    async def cancelled():
        await asyncio.wait_for(ScriptedModel(answer).agenerate([ask("x")]), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    assert ended.wait(5)
