"""Rollouts of scripted models, runs that go on, the command line."""

from __future__ import annotations

import json
import re

import pytest

from agents_jax.llm import CallError, Choice, ScriptedModel, ToolCall
from agents_jax.tools import render_calls
from agents_jax.tools.bfcl.multi_turn import (
    Limits,
    RolloutSettings,
    RunError,
    evaluate_multi_turn,
    load_multi_turn,
    read_transcripts,
    run_multi_turn,
)
from agents_jax.tools.bfcl.multi_turn.__main__ import main
from agents_jax.tools.bfcl.multi_turn.data import function_docs
from agents_jax.tools.bfcl.multi_turn.prompts import opening_messages, tool_definitions
from pangu_jax.data.wheel import WheelUnavailableError
from tests.agents_jax.tools.bfcl.multi_turn_made import files_item

pytest.importorskip("mpmath")


@pytest.fixture(scope="module", autouse=True)
def docs():
    try:
        return function_docs()
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")


@pytest.fixture
def item():
    return files_item([["mkdir(dir_name='new')", "ls()"], ["cat('a.txt')"]])


RIGHT = ["[mkdir(dir_name='new')]", "[ls()]", "Made.", "cat(file_name='a.txt')", "Done."]


def last(request):
    return request.messages[-1]


def test_a_right_answer(item):
    model = ScriptedModel(RIGHT)
    (transcript,) = run_multi_turn([item], model)
    assert evaluate_multi_turn([item], [transcript]).mean == 1
    assert [[s.text for s in turn.steps] for turn in transcript.turns] == [RIGHT[:3], RIGHT[3:]]
    assert [turn.stopped for turn in transcript.turns] == ["no_call", "no_call"]
    assert transcript.turns[0].steps[0].results == ("None",)
    assert transcript.usage.completion_tokens > 0 and transcript.error is None
    # The model saw the functions, the user's turns, and what its calls gave.
    first, *_ = model.asked
    assert first.messages[0]["role"] == "system" and '"mkdir"' in first.messages[0]["content"]
    assert last(first) == {"role": "user", "content": "Turn 0."}
    assert last(model.asked[2])["role"] == "user" and "b.txt" in last(model.asked[2])["content"]
    assert last(model.asked[3]) == {"role": "user", "content": "Turn 1."}
    assert [m["role"] for m in model.asked[3].messages].count("assistant") == 3
    assert not first.tools


def test_results_as_tool_messages_and_cut_short(item):
    model = ScriptedModel(["[ls(), pwd()]", "Done.", "Done."])
    run_multi_turn([item], model, RolloutSettings(results_as="tool", max_result_chars=10))
    one, other = model.asked[1].messages[-2:]
    assert one["role"] == other["role"] == "tool"
    assert (one["name"], other["name"]) == ("ls()", "pwd()")
    assert one["content"].startswith('{"current_') and "characters more" in one["content"]


def test_native_calls(item):
    def call(name, arguments, id=""):
        return Choice("", "tool_calls", (ToolCall(name, arguments, id),))

    model = ScriptedModel(
        [
            call("mkdir", '{"dir_name": "new"}', "c1"),
            call("ls", "{}"),
            "Made.",
            call("cat", '{"file_name": "a.txt"}'),
            call("cat", '{"file_name": '),  # broken: the turn is over
        ]
    )
    (transcript,) = run_multi_turn([item], model, RolloutSettings(calls="native"))
    assert transcript.native and evaluate_multi_turn([item], [transcript]).mean == 1
    assert {t["function"]["name"] for t in model.asked[0].tools} >= {"ls", "mkdir", "cat"}
    assert model.asked[0].messages == ({"role": "user", "content": "Turn 0."},)
    made, result = model.asked[1].messages[-2:]
    assert made["tool_calls"][0]["id"] == result["tool_call_id"] == "c1"
    made, result = model.asked[2].messages[-2:]
    assert made["tool_calls"][0]["id"] == result["tool_call_id"] != ""


def test_functions_that_are_added_later():
    item = files_item([["pwd()"], ["ls()"]], question=[[{"role": "user", "content": "Go."}], []],
                      missed_function={"1": ["ls", "cat"]})  # fmt: skip
    names = [f["name"] for f in item.raw_functions]
    assert "ls" not in names and "pwd" in names
    assert [f["name"] for f in item.added_functions[1]] == ["ls", "cat"]
    for style in ("compact", "official"):
        model = ScriptedModel(["[pwd()]", "None fits.", "[ls()]", "Done."])
        (transcript,) = run_multi_turn([item], model, RolloutSettings(style=style))
        assert evaluate_multi_turn([item], [transcript]).mean == 1
        told = last(model.asked[2])["content"]
        assert "ls" in told and "cat" in told and "mkdir" not in told
        assert "ls" not in [m["content"] for m in opening_messages(item, style)][-1]
    assert {t["function"]["name"] for t in tool_definitions(item, 1)} == {*names, "ls", "cat"}


def test_a_turn_with_too_many_steps_ends_the_item(item):
    model = ScriptedModel(lambda request: "[pwd()]")
    (transcript,) = run_multi_turn([item], model, RolloutSettings(max_steps=3))
    (turn,) = transcript.turns
    assert turn.stopped == "step_limit" and len(turn.steps) == 4  # as the leaderboard counts
    report = evaluate_multi_turn([item], [transcript])
    assert report.categories["multi_turn_base"].errors == {"multi_turn:force_terminated": 1}


def test_environments_that_die_end_the_item():
    items = [files_item([["add(a=1, b=2)"]], n, involved_classes=["MathAPI"]) for n in (0, 1)]
    model = ScriptedModel(["[power(base=9, exponent=100000000)]", "[add(a=1, b=2)]", "Done."])
    bad, good = run_multi_turn(items, model, parallel=1, limits=Limits(request_seconds=1.0))
    assert bad.error.startswith("environment: ") and bad.turns[0].stopped == "failed"
    assert good.error is None and good.turns[0].steps[0].results == ('{"result": 3}',)


def test_a_run_goes_on_where_it_was_cut(item, tmp_path):
    items = [files_item([["ls()"]], number) for number in range(5)]
    out = tmp_path / "turns.jsonl"
    answers = {"0": "[ls()]", "1": CallError("bad_request", "too long")}
    answers["2"] = CallError("server", "busy")

    def answer(request):
        number = request.metadata["id"][-1]
        return "Done." if len(request.messages) > 2 else answers.get(number, "[ls()]")

    first = run_multi_turn(items[:3], ScriptedModel(answer), out=out, parallel=2)
    assert [t.error for t in first] == [None, "bad_request: too long", "server: busy"]
    answers.clear()
    model = ScriptedModel(answer)
    seen = []
    second = run_multi_turn(items, model, out=out, parallel=3, on_item=lambda t: seen.append(t.id))
    # Asked again is what failed for a passing reason; what was too long stays so.
    assert sorted(seen) == [items[n].id for n in (2, 3, 4)]
    assert {r.metadata["id"] for r in model.asked} == set(seen)
    assert [t.error for t in second] == [None, "bad_request: too long", None, None, None]
    assert [t.id for t in second] == [i.id for i in items]
    assert read_transcripts(out) == {t.id: t for t in second}
    with pytest.raises(RunError, match="settings.max_tokens: 512 there, 9 now"):
        run_multi_turn(items, model, RolloutSettings(max_tokens=9), out=out)
    with pytest.raises(RunError, match="model.model: 'scripted' there, 'other' now"):
        run_multi_turn(items, ScriptedModel(answer, name="other"), out=out)
    out.write_text('{"id": "x"}\n')
    with pytest.raises(RunError, match="line 1 has no head"):
        run_multi_turn(items, model, out=out)


def test_a_failure_that_all_would_meet_ends_the_run(item, tmp_path):
    model = ScriptedModel(lambda request: CallError("auth", "The key is wrong."))
    with pytest.raises(RunError, match="The key is wrong.*0 of 1 items are done"):
        run_multi_turn([item], model, out=tmp_path / "turns.jsonl")


def test_settings_are_checked(item):
    for settings, message in (
        ({"calls": "spoken"}, "calls='spoken' is unknown; allowed: prompted, native"),
        ({"style": "long"}, "style='long' is unknown"),
        ({"results_as": "system"}, "results_as='system' is unknown"),
        ({"max_steps": 0}, "max_steps=0 is not allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            RolloutSettings(**settings)
    with pytest.raises(ValueError, match="parallel=0 is not allowed"):
        run_multi_turn([item], ScriptedModel(RIGHT), parallel=0)


def test_the_command_line(tmp_path, capsys):
    """The gold calls of two real items, as a script, and an item with nothing to say."""
    script = {}
    for real in load_multi_turn("multi_turn_base")[:2]:
        for number, calls in enumerate(real.ground_truth):
            (message,) = real.turns[number]
            script["user: " + re.escape(message["content"]) + "$"] = render_calls(calls)
    script["."] = "Done."
    model = tmp_path / "script.json"
    model.write_text(json.dumps(script))
    arguments = [f"--model=scripted:{model}", "--limit=3", f"--out={tmp_path / 'o.jsonl'}"]
    assert main([*arguments, f"--report={tmp_path / 'r.json'}"]) == 0
    shown = capsys.readouterr()
    assert "66.7%" in shown.out and "Apache-2.0" in shown.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert list(report["verdicts"].values()) == [
        "correct", "correct", "multi_turn:empty_turn_model_response",
    ]  # fmt: skip
    assert main(arguments) == 0  # all is there already
    assert "steps in" not in capsys.readouterr().err
    assert main([*arguments, "--max-tokens=7"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main([f"--model=scripted:{model}", "--categories=multi_turn"]) == 2
    assert "allowed: multi_turn_base" in capsys.readouterr().err
    for engine, message in (("{", "--engine={ is no JSON"), ("[]", "is no JSON object")):
        assert main([f"--model=scripted:{model}", "--limit=1", f"--engine={engine}"]) == 2
        assert message in capsys.readouterr().err
