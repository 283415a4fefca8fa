"""When refinement stops, what it asks, what it costs; the same rule in the agent loop."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.llm import (
    BatchError,
    CallError,
    Choice,
    GenerateRequest,
    ScriptedModel,
    ToolCall,
)
from agents_jax.tools import Call
from agents_jax.tools.agent import Proposal, State, make_refiner
from agents_jax.tools.toolace_r.answers import Answer, same_answer
from agents_jax.tools.toolace_r.refine import INSTRUCTION, RefineConfig, StoppingRule, refine

A, B, C = "[f(a=1)]", "[f(a=2)]", "[g(x=[1, 2])]"


def ask(question="What?", **settings):
    return GenerateRequest.ask(question, system_text="Functions: f, g", **settings)


def scripted(table, **options):
    """Answers by the last assistant's turn ('' where there is none) and the question."""

    def answer(request):
        said = [m["content"] for m in request.messages if m["role"] == "assistant"]
        return table[request.messages[1]["content"]][said[-1] if said else ""]

    return ScriptedModel(answer, **options)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("[f(a=1, b=2), g()]", "[g(), f(b=2, a=1)]", True),
        ("[f(a=1)]", "  f(a = 1) ", True),
        ("[f(a=1)]", '[{"name": "f", "arguments": {"a": 1}}]', True),
        ("[f(a=1)]", "[f(a=1.0)]", False),
        ("[f(a=1)]", "[f(a=1), f(a=1)]", False),
        ("None fits.", " None fits.\n", True),
        ("None fits.", "None fits", False),
        ("[]", "", False),
        ("[f(a=1)", "[f(a=1)]", False),
    ],
)
def test_same_answers(one, other, same):
    assert same_answer(Answer.read(one), Answer.read(other)) is same
    assert same_answer(Answer.read(other), Answer.read(one)) is same


def reference(letters, config):
    """(answers used, reason) by the definition, from the whole sequence at once."""
    for i in range(len(letters)):
        if config.fixed_steps is not None:
            if i == config.fixed_steps:
                return i, "fixed"
            continue
        if i and letters[i] == letters[i - 1]:
            return i, "equal"
        if config.on_cycle == "stop" and letters[i] in letters[:i]:
            return i, "cycle"
        if i == config.max_steps:
            return i, "max_steps"
    raise AssertionError("the sequence is too short")


@given(
    letters=st.lists(st.sampled_from("abc"), min_size=8, max_size=8),
    max_steps=st.integers(1, 6),
    fixed=st.none() | st.integers(1, 6),
    on_cycle=st.sampled_from(["stop", "continue"]),
)
@settings(max_examples=200, deadline=None)
def test_the_rule_is_its_definition(letters, max_steps, fixed, on_cycle):
    config = RefineConfig(max_steps=max_steps, fixed_steps=fixed, on_cycle=on_cycle)
    rule = StoppingRule(config)
    stops = [rule.add(Answer.read(f"[{letter}(x=1)]")) for letter in letters[:7]]
    i = next(i for i, stop in enumerate(stops) if stop is not None)
    assert (i, stops[i]) == reference(letters, config)
    rule = StoppingRule(config)
    for letter in letters[: i + 1]:
        rule.add(Answer.read(f"[{letter}(x=1)]"))
    # A cycle is an answer that comes back without being the last one.
    first = next(
        (
            j - max(k for k in range(j) if letters[k] == letters[j])
            for j in range(i + 1)
            if letters[j] in letters[:j] and letters[j] != letters[j - 1]
        ),
        0,
    )
    assert rule.cycle == first


def test_looks_go_on_until_two_answers_are_equal():
    table = {
        "one": {"": A, A: "f(a=1)"},  # the same call, written otherwise
        "two": {"": A, A: B, B: C, C: C},
        "three": {"": A, A: B, B: A},
    }
    model = scripted(table)
    one, two, three = refine(model, [ask(q) for q in table], RefineConfig(max_steps=4))
    assert (one.answers, one.stop, one.cycle) == ((A, "f(a=1)"), "equal", 0)
    assert (two.answers, two.stop, two.final) == ((A, B, C, C), "equal", C)
    assert (three.answers, three.stop, three.cycle) == ((A, B, A, B, A), "max_steps", 2)
    assert [one.steps, two.steps, three.steps] == [1, 3, 4]
    assert two.at(0) == A and two.at(1) == B and two.at(9) == C
    # Requests of one look go out together; each holds the question, the last answer, the wish.
    looks = [len(request.messages) for request in model.asked]
    assert looks == [2] * 3 + [4] * (1 + 3 + 4)
    last = model.asked[-1].messages
    assert [m["role"] for m in last] == ["system", "user", "assistant", "user"]
    assert last[3]["content"] == INSTRUCTION


def test_queries_do_not_touch_each_other():
    table = {"one": {"": A, A: B, B: B}, "two": {"": B, B: C, C: B}, "three": {"": C, C: C}}
    requests = [ask(q, max_tokens=7) for q in table]
    together = refine(scripted(table), requests, RefineConfig())
    alone = [refine(scripted(table), [r], RefineConfig())[0] for r in requests]
    for one, other in zip(together, alone, strict=True):
        assert (one.answers, one.stop, one.cycle) == (other.answers, other.stop, other.cycle)


def test_cost_is_the_sum_over_all_calls():
    model = scripted({"q": {"": A, A: B, B: B}})
    (found,) = refine(model, [ask("q")], RefineConfig())
    assert found.cost.model_calls == 3 == len(model.asked)
    words = sum(sum(1 + len(m["content"].split()) for m in r.messages) for r in model.asked)
    assert found.cost.prompt_tokens == words  # a scripted model counts words, roles among them
    assert found.cost.completion_tokens == 3


def test_a_fixed_number_of_looks_pays_no_heed_to_equality():
    model = scripted({"q": {"": A, A: A}})
    (found,) = refine(model, [ask("q")], RefineConfig(fixed_steps=3))
    assert (found.answers, found.stop) == ((A,) * 4, "fixed")
    assert len(model.asked) == 4


def test_a_look_that_fails_ends_its_query_alone():
    table = {
        "one": {"": A, A: CallError("bad_request", "longer than the context")},
        "two": {"": A, A: B, B: B},
    }
    one, two = refine(scripted(table), [ask(q) for q in table], RefineConfig())
    assert (one.stop, one.final, one.steps) == ("failed", A, 0) and "context" in one.error
    assert (two.stop, two.final) == ("equal", B)
    with pytest.raises(BatchError):  # there is nothing to refine
        refine(scripted({"q": {"": CallError("server", "down")}}), [ask("q")], RefineConfig())


def test_native_calls_of_an_endpoint_are_compared_too():
    def native(arguments):
        return Choice("", "tool_calls", (ToolCall("f", arguments),))

    answers = iter([native('{"a": 1, "b": 2}'), native('{"b": 2, "a": 1}')])
    (found,) = refine(ScriptedModel(lambda request: next(answers)), [ask()], RefineConfig())
    assert found.stop == "equal" and found.steps == 1
    assert found.final.startswith('[{"name": "f"')


def test_the_plug_in_of_the_loop_is_the_same_rule():
    table = {A: B, B: C, C: C}
    seen = []

    def look(extra=(), *, temperature=None, sample=0):
        seen.append(extra)
        call = extra[0]["tool_calls"][0]["function"]
        said = Call(call["name"], json.loads(call["arguments"]))
        text = table[next(t for t in table if Answer.read(t).calls == (said,))]
        return Proposal(text=text, calls=Answer.read(text).calls)

    first = Proposal(text=A, calls=Answer.read(A).calls)
    state = State(task_id="t", messages=(), tools=())
    found = make_refiner("toolace_r", None).refine(state, first, look)
    assert [p.text for p in found.steps] == [B, C, C] and found.reason == "equal"
    assert found.proposal.text == C
    assert all(extra[1]["content"] == INSTRUCTION for extra in seen)
    short = make_refiner("toolace_r:max_steps=1", None).refine(state, first, look)
    assert (short.reason, short.proposal.text) == ("max_steps", B)
    words = dataclasses.replace(first, text="I cannot.", calls=None)
    same = make_refiner("toolace_r", None).refine(state, words, lambda extra: words)
    assert same.reason == "equal" and len(same.steps) == 1
    with pytest.raises(ValueError, match="fixed_steps=0"):
        make_refiner("toolace_r:fixed_steps=0", None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_steps", 0), ("fixed_steps", 0), ("on_cycle", "go"), ("instruction", " ")],
)
def test_settings_that_do_not_work_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        RefineConfig(**{field: value})
