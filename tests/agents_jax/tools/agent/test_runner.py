"""Many tasks: what is on the disk after a failure, and what a second run does."""

import asyncio
import contextlib
import threading

import pytest
from agent_loop_tools import FakeExecutor

from agents_jax.llm import CallError, ScriptedModel, user
from agents_jax.tools.agent.loop import Agent
from agents_jax.tools.agent.runner import RunError, run_tasks
from agents_jax.tools.agent.settings import LoopSettings
from agents_jax.tools.agent.tasks import Task
from agents_jax.tools.agent.transcript import read_transcripts

TASKS = [Task(id=f"t{i}", messages=(user(f"question {i}?"),)) for i in range(5)]


def agents(model, registry, executor=None, made=None):
    @contextlib.contextmanager
    def make():
        if made is not None:
            made.append(threading.get_ident())
        settings = LoopSettings(style="prompted")
        yield Agent(
            model, executor or FakeExecutor(), settings=settings, tools=registry.definitions
        )

    return make


def test_a_run_goes_on_where_the_endpoint_died(tmp_path, registry):
    dead = {"question 2"}

    def answer(request):
        question = request.messages[1]["content"]
        if any(one in question for one in dead) and len(request.messages) > 2:
            raise CallError("server", "gone")
        return "[add(a=1, b=2)]" if len(request.messages) == 2 else f"answer to {question}"

    model = ScriptedModel(answer)
    path = tmp_path / "t.jsonl"
    first = run_tasks(TASKS, agents(model, registry), path, depends_on={"a": 1})
    assert [t.end for t in first] == ["answer", "answer", "model_failed", "answer", "answer"]
    kept = read_transcripts(path)
    assert kept["t2"].observations[0].text == "3" and kept["t2"].failure == "server"
    asked = len(model.asked)
    dead.clear()
    told = []
    second = run_tasks(
        TASKS, agents(model, registry), path, depends_on={"a": 1},
        on_done=lambda task, transcript: told.append(task.id),
    )  # fmt: skip
    assert [t.end for t in second] == ["answer"] * 5
    assert len(model.asked) == asked + 2  # the failed task alone
    assert sorted(told) == [task.id for task in TASKS]
    assert [t.id for t in second] == [task.id for task in TASKS]
    assert len(path.read_text().splitlines()) == 6
    third = run_tasks(TASKS, agents(model, registry), path, depends_on={"a": 1})
    assert third == second and len(model.asked) == asked + 2


@pytest.mark.parametrize(("kind", "asked"), [("auth", 1), ("server", 3)])
def test_a_dead_model_ends_the_run(tmp_path, registry, kind, asked):
    model = ScriptedModel(lambda request: CallError(kind, "gone"))
    path = tmp_path / "t.jsonl"
    with pytest.raises(RunError, match="gone.*the same command goes on"):
        run_tasks(TASKS, agents(model, registry), path, depends_on={}, max_failures=3)
    assert len(model.asked) == asked == len(read_transcripts(path))


def test_failures_that_are_not_in_a_row_end_nothing(tmp_path, registry):
    answers = iter([CallError("server", "gone"), "x", CallError("server", "gone"), "x", "x"])
    model = ScriptedModel(lambda request: next(answers))
    transcripts = run_tasks(
        TASKS, agents(model, registry), tmp_path / "t.jsonl", depends_on={}, max_failures=2
    )
    assert [t.end for t in transcripts].count("model_failed") == 2


def test_another_setting_is_another_run(tmp_path, registry):
    path = tmp_path / "t.jsonl"
    model = ScriptedModel(lambda request: "x")
    run_tasks(TASKS[:1], agents(model, registry), path, depends_on={"policy": "own"})
    run_tasks(TASKS, agents(model, registry), path, depends_on={"policy": "own"})
    with pytest.raises(RunError, match="another --workdir"):
        run_tasks(TASKS, agents(model, registry), path, depends_on={"policy": "never"})
    other = [Task(id="t0", messages=(user("another question"),))]
    with pytest.raises(RunError, match="'t0'"):
        run_tasks(other, agents(model, registry), path, depends_on={"policy": "own"})


def test_two_tasks_of_one_id(tmp_path, registry):
    twice = [TASKS[0], TASKS[0]]
    with pytest.raises(RunError, match="same id"):
        run_tasks(twice, agents(ScriptedModel(), registry), tmp_path / "t.jsonl", depends_on={})


def test_several_at_once(tmp_path, registry):
    inside, most, lock = 0, 0, threading.Lock()

    async def answer(request):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        await asyncio.sleep(0.02)
        with lock:
            inside -= 1
        return f"answer to {request.messages[-1]['content']}"

    made = []
    model = ScriptedModel(answer)
    transcripts = run_tasks(
        TASKS, agents(model, registry, made=made), tmp_path / "t.jsonl", depends_on={},
        concurrency=3,
    )  # fmt: skip
    assert [t.answer for t in transcripts] == [f"answer to question {i}?" for i in range(5)]
    assert most > 1 and len(made) == 3


def test_an_interrupt_is_written_and_raised(tmp_path, registry):
    class Interrupted:
        def run(self, call):
            raise KeyboardInterrupt

    model = ScriptedModel(lambda request: "[add(a=1, b=2)]")
    path = tmp_path / "t.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_tasks(TASKS, agents(model, registry, Interrupted()), path, depends_on={})
    assert {t.end for t in read_transcripts(path).values()} == {"interrupted"}
    assert len(model.asked) == 1
