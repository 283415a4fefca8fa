"""Multi-turn items, checks of calls against gold calls, scores."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import random
import sys

import numpy as np
import pytest

from agents_jax.llm.results import Usage
from agents_jax.tools import Call, render_calls
from agents_jax.tools.bfcl.data import BfclDataError
from agents_jax.tools.bfcl.multi_turn import (
    MULTI_TURN_CATEGORIES,
    Sandbox,
    Step,
    Turn,
    TurnsTranscript,
    check_turns,
    evaluate_multi_turn,
    load_multi_turn,
)
from agents_jax.tools.bfcl.multi_turn.mutations import (
    TURN_CHANGES,
    gold_turns,
    mutated_turns,
)
from agents_jax.tools.bfcl.multi_turn.prompts import opening_messages
from agents_jax.tools.bfcl.multi_turn.sandbox import Limits
from agents_jax.tools.bfcl.multi_turn.transcripts import step_calls
from pangu_jax.data.wheel import WheelUnavailableError
from tests.agents_jax.tools.bfcl.multi_turn_made import files_item

pytest.importorskip("mpmath")


@pytest.fixture(scope="module")
def items():
    try:
        return load_multi_turn()
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")


@pytest.fixture(scope="module")
def sandbox(items):
    with Sandbox() as made:
        yield made


def transcript(item, texts, **settings) -> TurnsTranscript:
    """Of texts by turn and step."""
    turns = tuple(Turn(tuple(Step(text) for text in steps)) for steps in texts)
    return TurnsTranscript(item.id, item.category, turns, **settings)


def error(item, texts, sandbox):
    return check_turns(item, transcript(item, texts).calls(), sandbox).error_type


def test_real_items(items):
    found = [item.category for item in items]
    assert {c: found.count(c) for c in MULTI_TURN_CATEGORIES} == MULTI_TURN_CATEGORIES
    assert len({item.id for item in items}) == 800
    for item in items:
        assert len(item.turns) == len(item.ground_truth)
        offered = {f["name"] for f in item.raw_functions}
        added = {f["name"] for fs in item.added_functions.values() for f in fs}
        called = {call.name for turn in item.ground_truth for call in turn}
        assert not offered & added and called <= offered | added
        assert bool(added) == (item.category == "multi_turn_miss_func")
        for number, messages in enumerate(item.turns):
            assert bool(messages) != (number in item.added_functions)
    # Arguments without a name have that of the parameter.
    named = [c for i in items for t in i.ground_truth for c in t if c.name == "sort"]
    assert all(list(call.arguments) == ["file_name"] for call in named) and named


def test_damaged_items_are_refused():
    with pytest.raises(BfclDataError, match="'multi_turn' is unknown; allowed: multi_turn_base"):
        load_multi_turn("multi_turn")
    with pytest.raises(BfclDataError, match="involves 'WebSearchAPI'; allowed: Gorilla"):
        files_item([[]], involved_classes=["WebSearchAPI"])
    with pytest.raises(BfclDataError, match="2 turns and 1 gold turns"):
        files_item([[]], question=[[], []])
    for call in ("ls(", "ls(a=open('x'))", "f(a=1)", "os.ls()"):
        with pytest.raises(BfclDataError, match="the gold call .* cannot be read"):
            files_item([[call]])


def test_gold_answers_of_every_environment_are_right(items, sandbox):
    """A sample of each category with each environment; all 800 in the benchmark."""
    for category in MULTI_TURN_CATEGORIES:
        seen: set[str] = set()
        for item in items:
            if item.category == category and not set(item.involved_classes) <= seen:
                seen |= set(item.involved_classes)
                for one_step in (False, True):
                    verdict = check_turns(item, gold_turns(item, one_step=one_step), sandbox)
                    assert verdict.valid, (item.id, verdict)
        assert len(seen) == 8


def test_kinds_of_wrong_answers(sandbox):
    item = files_item([["mkdir(dir_name='new')", "ls()"], [], ["cat('a.txt')"]])

    def verdict(*texts):
        return error(item, texts, sandbox)

    first, last = ["[mkdir(dir_name='new')]", "[ls()]"], ["[cat(file_name='a.txt')]"]
    assert verdict(first, [], last) is None
    assert verdict(["[mkdir(dir_name='new'), ls()]", "Done."], [], last) is None
    assert verdict([*first, "[pwd()]", "[nonsense()]"], ["[pwd()]"], last) is None  # reads more
    assert verdict(first, []) == "multi_turn:force_terminated"
    assert verdict(first, [], []) == "multi_turn:empty_turn_model_response"
    assert verdict(["Done."], [], last) == "multi_turn:empty_turn_model_response"
    assert verdict(["[ls()]"], [], last) == "multi_turn:instance_state_mismatch"
    assert verdict(first[:1], [], last) == "multi_turn:execution_response_mismatch"
    assert verdict(first[::-1], [], last) == "multi_turn:execution_response_mismatch"
    assert verdict(first, ["[rm(file_name='b.txt')]"], last) == "multi_turn:instance_state_mismatch"
    assert verdict(first, ["[cat(file_name='a.txt')]"], ["[pwd()]"]) is None  # said before
    assert verdict(first, [], ["[cat(file_name='b.txt')]"]) == (
        "multi_turn:execution_response_mismatch"
    )


def test_results_count_with_their_number(sandbox):
    item = files_item([["pwd()", "pwd()"]])
    assert error(item, [["[pwd()]"]], sandbox) == "multi_turn:execution_response_mismatch"
    assert error(item, [["[pwd()]", "[pwd()]"]], sandbox) is None


def test_environments_that_die_are_a_wrong_answer():
    item = files_item([["add(a=1, b=2)"]], involved_classes=["MathAPI"])
    with Sandbox(["MathAPI"], limits=Limits(request_seconds=1.0)) as sandbox:
        verdict = check_turns(item, [[[Call("power", {"base": 9, "exponent": 10**8})]]], sandbox)
        assert (
            verdict.error_type == "multi_turn:environment_failed" and "in time" in verdict.message
        )
        assert check_turns(item, [[[Call("add", {"a": 1, "b": 2})]]], sandbox).valid


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f(a=1)]", [Call("f", {"a": 1})]),
        ("f(a=g(b=1))", [Call("f", {"a": {"g": {"b": 1}}})]),
        ("I am done.", None),
        ("[]", []),
        ("[f(a={})]", None),  # BFCL cannot write it down, and skips the step
        ("[f(a={'k': 1, 'm': {}})]", None),
        ("[f(a={'k': {}})]", [Call("f", {"a": {"k": {}}})]),  # a nested call of k
        ("[f(a=[{}])]", [Call("f", {"a": [{}]})]),
        ("[f(a={'g': {'b': 1}, 'h': {}})]", [Call("f", {"a": {"g": {"b": 1}, "h": {}}})]),
    ],
)
def test_steps_are_read_as_the_leaderboard_reads_them(text, calls):
    assert step_calls(Step(text)) == calls


def test_native_steps():
    step = Step("I call.", (("f", '{"a": 1}'), ("g", "")))
    assert step_calls(step, native=True) == [Call("f", {"a": 1}), Call("g", {})]
    for broken in ("{", "[1]", "1"):
        assert step_calls(Step("", (("f", broken),)), native=True) is None


def test_transcripts_survive_json():
    item = files_item([[], []])
    turns = (
        Turn((Step("[pwd()]", results=("x",)), Step("Ö\u2028", (("f", "{}"),)))),
        Turn((), "failed"),
    )
    made = TurnsTranscript(item.id, item.category, turns, True, "gone", Usage(3, 4), 0.5)
    assert TurnsTranscript.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    with pytest.raises(ValueError, match="no transcript of a multi-turn item"):
        TurnsTranscript.from_dict({"id": "x"})


def test_scores(sandbox):
    items = [files_item([["ls()"]], number) for number in range(4)]
    texts = ["[ls()]", "[pwd()]", "no", "[ls()]"]
    made = [
        transcript(item, [[text]], usage=Usage(10, 2))
        for item, text in zip(items, texts, strict=True)
    ]
    made[3] = transcript(items[3], [], error="bad_request: too long")
    random.Random(0).shuffle(made)
    report = evaluate_multi_turn(items, made, sandbox=sandbox)
    score = report.categories["multi_turn_base"]
    assert (score.num_items, score.num_correct, report.num_failed) == (4, 1, 1)
    assert report.mean == 0.25 and score.interval[0] < 0.25 < score.interval[1]
    assert score.errors == {
        "multi_turn:execution_response_mismatch": 1,
        "multi_turn:empty_turn_model_response": 1,
        "multi_turn:force_terminated": 1,
    }
    assert report.to_dict()["verdicts"]["multi_turn_base_0"] == "correct"
    assert "25.0%" in str(report) and report.prompt_tokens == 30
    with pytest.raises(ValueError, match="3 transcripts for 4 items.*multi_turn_base"):
        evaluate_multi_turn(items, made[1:], sandbox=sandbox)


def test_changes_change(items):
    rng = np.random.default_rng(0)
    chosen = items[::9]
    for name, change in TURN_CHANGES.items():
        gold = [gold_turns(item) for item in chosen]
        made = [change(i, g, rng, chosen) for i, g in zip(chosen, gold, strict=True)]
        assert sum(m != g for m, g in zip(made, gold, strict=True)) > 10, name
        assert gold == [gold_turns(item) for item in chosen]  # nothing is changed in place


def test_verdicts_equal_the_official_ones(items, sandbox):
    """Beside the leaderboard's own code, out of the wheel, in a process of its own."""
    folder = pathlib.Path(__file__).resolve().parents[4] / "benchmarks"
    spec = importlib.util.spec_from_file_location("turns", folder / "bfcl_multi_turn.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    cases = benchmark.make_trajectories(items[::16], 3, seed=7)
    theirs = benchmark.official(cases, sys.executable)
    mine = [benchmark.judged(item, texts, sandbox) for item, texts, _ in cases]
    assert len(cases) == 200 and mine == theirs
    assert 50 < sum(valid for valid, _ in theirs) < 190


def test_rendered_calls_are_read_back(items):
    """What benchmarks hand over as texts are the same calls."""
    rng = np.random.default_rng(1)
    for item in items[::40]:
        turns, _ = mutated_turns(item, rng, items[::40])
        for steps in turns:
            for calls in steps:
                read = step_calls(Step(render_calls(calls)))
                assert read is None or read == calls


def test_official_prompts_agree(items, peer):
    chosen = items[::40]
    lines = [{"id": i.id, "function": i.raw_functions, "messages": i.turns[0]} for i in chosen]
    *theirs, _ = peer.run_official("".join(json.dumps(line) + "\n" for line in lines))
    assert [{"messages": opening_messages(i, "official")} for i in chosen] == theirs
