"""Recordings: what is asked again, what survives a crash, what two writers do."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.llm import (
    BatchError,
    CallError,
    Choice,
    GenerateRequest,
    HiddenStatesRequest,
    RecordedModel,
    RecordingError,
    ReplayMiss,
    ScoreRequest,
    ScriptedModel,
    Token,
    ToolCall,
)
from agents_jax.llm.jsonl import JsonLines, read_lines

ask = GenerateRequest.ask


def answering(prefix, **kwargs):
    return ScriptedModel(lambda r: f"{prefix}{r.messages[0]['content']}.{r.sample}", **kwargs)


def test_only_what_is_missing_is_asked(tmp_path):
    path = tmp_path / "deep" / "run.jsonl"
    first = answering("a")
    with RecordedModel(path, first) as model:
        assert model.missing([ask("x"), ask("y")]) == 2
        assert model.generate([ask("x")])[0].text == "ax.0"
    second = answering("b")
    with RecordedModel(path, second) as model:
        assert model.missing([ask("x"), ask("y")]) == 1
        answers = model.generate([ask("y"), ask("x"), ask("y")])
    assert [a.text for a in answers] == ["by.0", "ax.0", "by.0"]
    assert [a.cached for a in answers] == [False, True, False]
    assert len(second.asked) == 1


def test_samples_and_seeds_have_lines_of_their_own(tmp_path):
    path = tmp_path / "run.jsonl"
    with RecordedModel(path, answering("a")) as model:
        model.generate([ask("x", n=3, temperature=1.0, seed=1)])
    later = answering("b")
    with RecordedModel(path, later) as model:
        more, other = model.generate(
            [ask("x", n=5, temperature=1.0, seed=1), ask("x", n=2, temperature=1.0, seed=2)]
        )
    assert more.texts == ("ax.0", "ax.1", "ax.2", "bx.3", "bx.4")
    assert other.texts == ("bx.0", "bx.1")
    assert sorted((r.seed, r.sample) for r in later.asked) == [(1, 3), (1, 4), (2, 0), (2, 1)]
    with RecordedModel(path, mode="replay") as model:
        assert model.generate([ask("x", n=2, temperature=1.0, seed=1)])[0].texts == more.texts[:2]


def test_the_model_is_a_part_of_the_key(tmp_path):
    path = tmp_path / "run.jsonl"
    for name in ("small", "large"):
        with RecordedModel(path, ScriptedModel([name], name=name)) as model:
            assert model.generate([ask("x")])[0].text == name
    with pytest.raises(RecordingError, match="'small', 'large'"):
        RecordedModel(path, mode="replay")
    with RecordedModel(path, mode="replay", select="large") as model:
        assert model.generate([ask("x")])[0].text == "large"


def test_everything_comes_back_as_it_was(tmp_path):
    path = tmp_path / "run.jsonl"
    token = Token("a", -0.1, (("a", -0.1), ("b", -2.5)))
    answer = Choice("ü\ud800\n", "tool_calls", (ToolCall("f", "{}", "id"),), (token,))
    source = ScriptedModel([answer], scores={"Yes": (-1.5, -2.0)}, hidden=3)
    generate = [ask("x", logprobs=2)]
    score = [ScoreRequest(prompt="x", continuations=("Yes",))]
    hidden = [HiddenStatesRequest(prompt="x", layers=(1, 2), positions=(-1, -2))]
    with RecordedModel(path, source) as model:
        fresh = model.generate(generate), model.score(score), model.hidden_states(hidden)
    with RecordedModel(path, mode="replay") as model:
        kept = model.generate(generate), model.score(score), model.hidden_states(hidden)
        assert model.capabilities == source.capabilities
    assert kept[0][0].choices == fresh[0][0].choices == (answer,)
    assert kept[0][0].usage == fresh[0][0].usage
    assert kept[1][0].continuations == fresh[1][0].continuations
    assert kept[2][0].values.dtype == np.float32
    np.testing.assert_array_equal(kept[2][0].values, source.hidden_states(hidden)[0].values)


def test_a_miss_says_what_comes_nearest(tmp_path):
    path = tmp_path / "run.jsonl"
    with RecordedModel(path, answering("a")) as model:
        model.generate([ask("What is the capital of France?", temperature=0.5), ask("other")])
    with RecordedModel(path, mode="replay") as model:
        with pytest.raises(ReplayMiss) as caught:
            model.generate([ask("What is the capital of Spain?", temperature=0.5, seed=1)])
        text = str(caught.value)
        assert "character 23" in text and "Spain" in text and "France" in text
        assert "request.seed: asked 1, recorded the default" in text
        assert "temperature" not in text and "mode='record'" in text
        here, there = model.generate([ask("other"), ask("x")], on_error="return")
    assert here.text == "aother.0" and there.error.kind == "not_recorded"


def test_failures_are_not_kept_and_answers_beside_them_are(tmp_path):
    path = tmp_path / "run.jsonl"

    def one_fails(request):
        name = request.messages[0]["content"]
        return CallError("server", "down") if name == "2" else name

    with RecordedModel(path, ScriptedModel(one_fails, concurrency=1)) as model:
        with pytest.raises(BatchError, match="down") as caught:
            model.generate([ask(str(i)) for i in range(5)])
    assert [r.error is None for r in caught.value.results] == [True, True, False, False, False]
    with RecordedModel(path, answering("b")) as model:
        texts = [a.text for a in model.generate([ask(str(i)) for i in range(5)])]
    assert texts == ["0", "1", "b2.0", "b3.0", "b4.0"]


CHILD = """
import os, signal, sys
from agents_jax.llm import GenerateRequest, RecordedModel, ScriptedModel

path, die_at = sys.argv[1], int(sys.argv[2])
count = 0

def answer(request):
    global count
    count += 1
    if count == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return request.messages[0]["content"]

with RecordedModel(path, ScriptedModel(answer, concurrency=1)) as model:
    model.generate([GenerateRequest.ask(str(i)) for i in range(30)])
print(count)
"""


def test_a_killed_run_resumes_with_what_is_missing(tmp_path):
    path, script = tmp_path / "run.jsonl", tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(die_at):
        return subprocess.run(
            [sys.executable, str(script), str(path), str(die_at)],
            capture_output=True,
            text=True,
            env=environment,
        )

    killed = run(12)
    assert killed.returncode == -signal.SIGKILL
    assert sum(record["kind"] == "answer" for _, record in read_lines(path)) == 11
    # As if the machine had stopped in the middle of the next line.
    with open(path, "ab") as file:
        file.write(b'{"kind": "answer", "key": "ab')
    resumed = run(-1)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.strip() == "19"
    with RecordedModel(path, mode="replay") as model:
        texts = [a.text for a in model.generate([ask(str(i)) for i in range(30)])]
    assert texts == [str(i) for i in range(30)]


@settings(max_examples=20)
@given(st.floats(0, 1))
def test_a_file_cut_anywhere_keeps_all_whole_lines(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "run.jsonl"
    requests = [ask(f"{i} ü") for i in range(4)]
    with RecordedModel(path, answering("a", concurrency=1)) as model:
        model.generate(requests)
    whole = path.read_bytes()
    cut = round(share * len(whole))
    path.write_bytes(whole[:cut])
    # A line that lacks nothing but its end counts as whole.
    lines = sum(1 for line in (whole[:cut] + b"\n").splitlines() if line and line in
                whole.splitlines())  # fmt: skip
    later = answering("b")
    with RecordedModel(path, later) as model:
        answers = model.generate(requests)
    kept = max(0, lines - 1)  # the first line names the model
    assert len(later.asked) == 4 - kept
    assert [a.text[0] for a in answers] == ["a"] * kept + ["b"] * (4 - kept)
    with RecordedModel(path, mode="replay") as model:
        assert [a.text for a in model.generate(requests)] == [a.text for a in answers]


def test_two_writers_are_kept_apart(tmp_path):
    path = tmp_path / "run.jsonl"
    with RecordedModel(path, answering("a")):
        with pytest.raises(RecordingError, match="being written"):
            RecordedModel(path, answering("b"))
        code = f"from agents_jax.llm.jsonl import JsonLines; JsonLines({str(path)!r})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        other = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert "being written" in other.stderr
        with RecordedModel(path, mode="replay"):  # readers may come
            pass
    with RecordedModel(path, answering("b")):
        pass


@pytest.mark.parametrize(
    "damage, words",
    [
        (b"not json\n", "line 2 is no JSON"),
        (b"[1]\n", "line 2 is no JSON object"),
        (b'{"kind": "answer"}\n', "line 2 is no line of a recording"),
        (b'{"kind": "what"}\n', "line 2 is no line of a recording"),
        (b'{"kind":"answer","key":"0","model":{},"request":{},"answer":{}}\n', "not the hash"),
    ],
)
def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path, damage, words):
    path = tmp_path / "run.jsonl"
    with RecordedModel(path, answering("a")) as model:
        model.generate([ask("x")])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + second)
    with pytest.raises(RecordingError, match=words):
        RecordedModel(path, answering("b"))
    # The failed try holds no lock.
    path.write_bytes(first + second)
    RecordedModel(path, answering("b")).close()


def test_an_edited_answer_that_does_not_fit_is_an_error(tmp_path):
    path = tmp_path / "run.jsonl"
    with RecordedModel(path, answering("a")) as model:
        model.generate([ask("x")])
    header, line = path.read_text().splitlines()
    record = json.loads(line)
    record["answer"]["choices"] = [{"txet": "?"}]
    path.write_text(f"{header}\n{json.dumps(record)}\n")
    with pytest.raises(RecordingError, match="line 2"):
        RecordedModel(path, mode="replay")


def test_modes(tmp_path):
    with pytest.raises(ValueError, match="mode='play'"):
        RecordedModel(tmp_path / "x", mode="play")
    with pytest.raises(ValueError, match="needs a model"):
        RecordedModel(tmp_path / "x")
    with pytest.raises(RecordingError, match="cannot be read"):
        RecordedModel(tmp_path / "absent", mode="replay")
    closed = JsonLines(tmp_path / "y")
    closed.close()
    with pytest.raises(RecordingError, match="closed"):
        closed.append([{}])
