"""Transcripts on disk and on a terminal."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from agents_jax.llm import RecordingError, user
from agents_jax.tools.agent import viewer
from agents_jax.tools.agent.policy import Cost, Decision, Proposal, Refinement
from agents_jax.tools.agent.transcript import (
    Transcript,
    TranscriptFile,
    Turn,
    from_json,
    read_transcripts,
)
from agents_jax.tools.calls import Call
from agents_jax.tools.execution import Observation

CALL = Call("add", {"a": 1, "b": {"c": [1.5, None, True, "x"]}})
FIRST = Proposal(text="[add(a=1", calls=None, problem="cut", cost=Cost(1, 10, 2, 0.5))
SECOND = Proposal(text="", calls=(CALL,), call_ids=("i",), cost=Cost(1, 20, 3, 0.25))


def example(**fields):
    turn = Turn(
        decision=Decision(call=True, score=0.5, reason="so", cost=Cost(1, 5, 1, 0.125)),
        proposal=FIRST,
        refinement=Refinement(proposal=SECOND, steps=(SECOND,), reason="equal"),
        observations=(Observation(CALL, False, "no\x1b[2J", "raised", 0.1),),
        told="again",
    )
    values = {
        "id": "t", "key": "k", "model": "m", "offered": ("add",), "messages": (user("1+2?"),),
        "num_given": 1, "turns": (turn, Turn(proposal=Proposal(text="3"))), "answer": "3",
    }  # fmt: skip
    return Transcript(**values | fields)


def test_back_from_json():
    transcript = example()
    assert from_json(json.loads(json.dumps(transcript.to_json()))) == transcript
    assert transcript.cost == Cost(3, 35, 6, 0.875)
    assert transcript.to_json()["prompt_tokens"] == 35
    assert transcript.turns[0].final is SECOND


@pytest.mark.parametrize("bad", [{}, {"turns": [], "end": "x", "id": "t"}, {"turns": 3}])
def test_what_is_no_transcript(bad):
    with pytest.raises(RecordingError, match="fit together"):
        from_json(bad)


def test_values_that_json_cannot_say_become_text():
    call = Call("f", {"a": float("inf"), "b": {1: {2, 3}}})
    transcript = example(turns=(Turn(observations=(Observation(call, True, ""),)),))
    arguments = transcript.to_json()["turns"][0]["observations"][0]["call"]["arguments"]
    assert arguments == {"a": "inf", "b": {"1": "{2, 3}"}}
    json.dumps(arguments, allow_nan=False)


def test_files_keep_the_last_of_each_task_and_repair_a_torn_line(tmp_path):
    path = tmp_path / "transcripts.jsonl"
    file = TranscriptFile(path)
    file.add(example(answer="\ud800"))
    with pytest.raises(RecordingError, match="written by another"):
        TranscriptFile(path)
    file.add(example(id="u"))
    file.add(example(answer="4"))
    file.close()
    assert {name: t.answer for name, t in read_transcripts(path).items()} == {"t": "4", "u": "3"}
    with open(path, "ab") as torn:
        torn.write(b'{"id": "v", "tu')
    file = TranscriptFile(path)
    assert set(file.done) == {"t", "u"}
    file.add(example(id="v"))
    file.close()
    assert set(read_transcripts(path)) == {"t", "u", "v"}
    path.write_text('{"id": "t"}\n')
    with pytest.raises(RecordingError, match="line 1"):
        TranscriptFile(path)
    assert read_transcripts(tmp_path / "none.jsonl") == {}


def test_finished():
    assert example(end="turn_limit").finished and example(end="unparsable").finished
    assert not example(end="interrupted").finished
    assert not example(end="model_failed", failure="server").finished
    assert example(end="model_failed", failure="bad_request").finished


def test_viewer_shows_all_and_no_control_characters(tmp_path, capsys):
    console = Console(file=io.StringIO(), width=200)
    viewer.show([example(error="boom")], length=0, console=console)
    text = console.file.getvalue()
    for said in (
        "1+2?", "call, score 0.5 (so)", "[add(a=1", "cut", "add(a=1, b=", "raised", "no", "again",
        "1 steps: equal", "boom",
    ):  # fmt: skip
        assert said in text
    assert "\x1b" not in text
    path = tmp_path / "t.jsonl"
    file = TranscriptFile(path)
    file.add(example(id="good"))
    file.add(example(id="bad", end="time_limit"))
    file.close()
    assert viewer.main([str(path), "--failed"]) == 0
    out, err = capsys.readouterr()
    assert "bad" in out and "good" not in out and "1 of 2 tasks" in err
    assert viewer.main([str(path), "--id", "good", "--length", "3"]) == 0
    assert "characters more" in capsys.readouterr().out
    assert viewer.main([str(tmp_path / "none")]) == 2
    path.write_text("{}\n")
    assert viewer.main([str(path)]) == 2


def test_viewer_as_a_module(tmp_path):
    command = [sys.executable, "-m", "agents_jax.tools.agent.viewer", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "There is no file" in done.stderr
