"""Scores of transcripts, and the tables made of them."""

import json
import math

import pytest

from agents_jax.llm import user
from agents_jax.tools.agent.policy import Proposal
from agents_jax.tools.agent.scores import Rate, Summary, holds, matches, score
from agents_jax.tools.agent.tasks import Expected, ExpectedCall, Task
from agents_jax.tools.agent.transcript import Transcript, Turn
from agents_jax.tools.calls import Call
from agents_jax.tools.execution import Observation


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It is 84.", 84, True),
        ("It is 840.", 84, False),
        ("1,059,303 in all", 1059303, True),
        ("1059303.0", 1059303, True),
        ("about 1.059303e6", 1059303, True),
        ("-5 degrees", -5, True),
        ("on 2024-05-01", -5, False),
        ("pi is 3.14159", 3.14, True),
        ("pi is 3.15", 3.14, False),
        ("42.1648128 km", 42.16, True),
        ("1.0000001", 1, True),
        ("1.01", 1, False),
        ("version 1.5.84", 84, False),
        ("Paris!", "paris", True),
        ("Parisian", "Paris", False),
        ("the file lathe.txt", "lathe.txt", True),
        ("plus (+)", "+", True),
        ("", "x", False),
    ],
)
def test_holds(text, answer, found):
    assert holds(text, answer) is found


def test_matches():
    wanted = ExpectedCall(name="f", arguments={"a": 1, "b": ["X", {"c": 2.0}]})
    assert matches(wanted, Call("f", {"b": ["x ", {"c": 2}], "a": 1.0}))
    assert not matches(wanted, Call("f", {"a": 1}))
    assert not matches(wanted, Call("f", {"a": True, "b": ["x", {"c": 2}]}))
    assert not matches(wanted, Call("g", {"a": 1, "b": ["x", {"c": 2}]}))
    assert matches(ExpectedCall(name="f"), Call("f", {"z": 9}))


def _transcript(*calls, answer=None, ok=True, end="answer"):
    seen = tuple(Observation(call, ok, "x", None if ok else "raised") for call in calls)
    return Transcript(id="t", turns=(Turn(observations=seen),), answer=answer, end=end)


def _task(**fields):
    return Task(id="t", messages=(user("?"),), **fields)


def test_success_needs_all_that_is_expected():
    call = ExpectedCall(name="f")
    task = _task(expected=Expected(answers=(3, "three"), calls=(call,)), needs_tool=True)
    assert score(task, _transcript(Call("f"), answer="It is three.")).success
    assert not score(task, _transcript(answer="It is 3.")).success
    assert not score(task, _transcript(Call("f"), answer="It is 4.")).success
    assert not score(task, _transcript(Call("f"), end="turn_limit")).success
    assert score(_task(), _transcript(answer="x")).success is None


def test_each_expected_call_needs_a_call_of_its_own():
    bare, exact = ExpectedCall(name="f"), ExpectedCall(name="f", arguments={"a": 1})
    task = _task(expected=Expected(calls=(bare, exact)))
    assert score(task, _transcript(Call("f", {"a": 1}), Call("f", {"a": 2}))).success
    assert not score(task, _transcript(Call("f", {"a": 1}))).success
    nothing = _task(expected=Expected(calls=()))
    assert score(nothing, _transcript(answer="x")).success
    assert not score(nothing, _transcript(Call("f"))).success


def test_needless_missed_and_wrong():
    needs, not_needed = _task(needs_tool=True), _task(needs_tool=False)
    assert score(needs, _transcript()).missed and not score(needs, _transcript(Call("f"))).missed
    assert score(needs, _transcript()).needless is None
    assert score(not_needed, _transcript(Call("f"))).needless
    assert score(needs, _transcript(Call("f"), Call("g"), ok=False)).num_wrong == 2
    task = _task(expected=Expected(calls=(ExpectedCall(name="f"),)))
    assert score(task, _transcript(Call("f"), Call("g"))).num_wrong == 1


def test_calls_that_were_written_only_count_too():
    turn = Turn(proposal=Proposal(text="", calls=(Call("f"),)))
    transcript = Transcript(id="t", turns=(turn,), end="calls")
    assert score(_task(needs_tool=False), transcript).needless
    unreadable = Transcript(
        id="t", turns=(Turn(proposal=Proposal(text="f(", calls=None)),), end="unparsable"
    )
    assert score(_task(), unreadable).num_unreadable == 1


def test_summary_counts_and_writes():
    needs = _task(needs_tool=True, expected=Expected(answers=(3,)))
    not_needed = _task(needs_tool=False, expected=Expected(answers=(4,)))
    scores = (
        score(needs, _transcript(Call("f"), answer="3")),
        score(needs, _transcript(answer="5")),
        score(not_needed, _transcript(Call("f"), answer="4", ok=False)),
    )
    rates = Summary(scores).rates()
    assert rates["success"] == Rate(2, 3)
    assert rates["success, tool needed"] == Rate(1, 2)
    assert rates["needless calls"] == Rate(1, 1)
    assert rates["missed calls"] == Rate(1, 2)
    assert rates["wrong calls"] == Rate(1, 2)
    means = Summary(scores).means()["tool calls per task"]
    assert means.mean == pytest.approx(2 / 3)
    assert means.half == pytest.approx(1.959964 * math.sqrt(1 / 3) / math.sqrt(3))
    json.dumps(Summary(scores).to_dict(), allow_nan=False)
    json.dumps(Summary(()).to_dict(), allow_nan=False)
    assert "| success | 2/3 = 66.7% [20.8%, 93.9%] |" in Summary(scores).markdown()
