"""Transcripts: what is written, and the viewer."""

import json
import subprocess
import sys

from agents_jax.llm import (
    CallError,
    GenerateRequest,
    HiddenStatesRequest,
    RecordedModel,
    ScoreRequest,
    ScriptedModel,
    Transcript,
)
from agents_jax.llm.hashing import request_key
from agents_jax.llm.jsonl import read_lines
from agents_jax.llm.transcript import main

ask = GenerateRequest.ask


def run(tmp_path):
    def answer(request):
        if "fail" in request.messages[0]["content"]:
            return CallError("server", "it is down", attempts=3)
        return "the answer \x1b[31mred\x1b[0m [bold]not markup[/bold]"

    path = tmp_path / "calls.jsonl"
    transcript = Transcript(path)
    model = ScriptedModel(answer, scores={"Yes": -0.5}, hidden=3, transcript=transcript)
    requests = [ask("good", tag="a", metadata={"item": 3}, n=2, temperature=1.0), ask("fail")]
    model.generate(requests, on_error="return")
    model.score([ScoreRequest(prompt="p", continuations=("Yes",))])
    model.hidden_states([HiddenStatesRequest(prompt="p")])
    transcript.close()
    return path, requests, model


def test_every_call_is_written(tmp_path):
    path, requests, model = run(tmp_path)
    records = [record for _, record in read_lines(path)]
    assert len(records) == 5
    first = records[0]
    assert first["tag"] == "a" and first["metadata"] == {"item": 3}
    assert first["hash"] == request_key(model.identity, requests[0].content())
    assert first["request"]["messages"] == [{"role": "user", "content": "good"}]
    assert first["answer"]["choices"][0]["text"].startswith("the answer")
    assert first["answer"]["usage"]["completion_tokens"] > 0 and first["answer"]["latency"] > 0
    assert [r["request"].get("sample", 0) for r in records] == [0, 1, 0, 0, 0]
    assert records[2]["answer"]["error"] == {
        "kind": "server", "message": "it is down", "attempts": 3,
    }  # fmt: skip
    assert records[4]["answer"]["values"] == {"shape": [1, 1, 3]}


def test_answers_from_a_recording_are_written_as_such(tmp_path):
    transcript = Transcript(tmp_path / "calls.jsonl")
    for _ in range(2):
        model = ScriptedModel(["x"], transcript=transcript)
        with RecordedModel(tmp_path / "run.jsonl", model, transcript=transcript) as recorded:
            recorded.generate([ask("q")])
    transcript.close()
    cached = [record["answer"].get("cached", False) for _, record in read_lines(transcript.path)]
    assert cached == [False, True]


def test_the_viewer(tmp_path, capsys):
    path, requests, model = run(tmp_path)
    assert main([str(path)]) == 0
    shown = capsys.readouterr()
    for text in ("good", "the answer", "[bold]not markup[/bold]", "it is down", "-0.5000"):
        assert text in shown.out
    assert "\x1b[31m" not in shown.out and "tag a" in shown.out
    assert "5 of 5 calls" in shown.err
    assert main([str(path), "--errors"]) == 0
    assert "1 of 5" in capsys.readouterr().err
    assert main([str(path), "--tag", "a", "--last", "1"]) == 0
    assert "2 of 5" in capsys.readouterr().err
    key = request_key(model.identity, requests[1].content())
    assert main([str(path), "--hash", key[:10], "--length", "3"]) == 0
    shown = capsys.readouterr()
    assert "1 of 5" in shown.err and "fai … (1 characters more)" in shown.out


def test_the_viewers_command_and_its_mistakes(tmp_path, capsys):
    path, _, _ = run(tmp_path)
    command = [sys.executable, "-m", "agents_jax.llm.transcript", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "the answer" in done.stdout and "Warning" not in done.stderr
    assert main([str(tmp_path / "absent")]) == 2
    assert "absent cannot be read" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"a": 1}) + "\n")
    assert main([str(other)]) == 2
    assert "is no transcript" in capsys.readouterr().err
