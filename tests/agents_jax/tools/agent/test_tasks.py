"""Tasks from files; the built-in ones."""

import json

import pytest

from agents_jax.tools.agent.builtin_tasks import DOCUMENTS, builtin_tasks, write_documents
from agents_jax.tools.agent.tasks import ExpectedCall, TaskError, read_task, read_tasks


def test_a_task_of_every_field():
    line = {
        "id": "a",
        "messages": [{"role": "user", "content": "2+2?"}],
        "tools": [{"name": "add", "description": "adds", "parameters": {"type": "object"}}],
        "expected": {"answer": [4, "four"], "calls": [{"name": "add", "arguments": {"a": 2}}]},
        "needs_tool": False,
    }
    task = read_task(line)
    assert task.expected.answers == (4, "four")
    assert task.expected.calls == (ExpectedCall(name="add", arguments={"a": 2}),)
    assert task.tools[0].name == "add" and task.needs_tool is False
    assert read_task(task.to_json()) == task
    assert read_task({"id": "b", "query": "hm"}).messages[0]["content"] == "hm"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"id": "a", "query": "x", "quary": 1}, "'quary' is unknown"),
        ({"query": "x"}, "id=None"),
        ({"id": 3, "query": "x"}, "id=3"),
        ({"id": "a"}, "exactly one"),
        ({"id": "a", "query": "x", "messages": []}, "exactly one"),
        ({"id": "a", "query": " "}, "a text is needed"),
        ({"id": "a", "messages": []}, "at least one message"),
        ({"id": "a", "messages": [{"role": "boss", "content": ""}]}, "'role'"),
        ({"id": "a", "messages": [{"role": "user", "content": 3}]}, "content=3"),
        ({"id": "a", "messages": [{"role": "assistant", "content": "x"}]}, "last message"),
        (
            {"id": "a", "messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
            "function.name",
        ),
        ({"id": "a", "query": "x", "needs_tool": "yes"}, "needs_tool='yes'"),
        ({"id": "a", "query": "x", "expected": {"answers": 1}}, "'answer' and 'calls'"),
        ({"id": "a", "query": "x", "expected": {"answer": True}}, "expected.answer"),
        ({"id": "a", "query": "x", "expected": {"calls": "add"}}, "a list of calls"),
        ({"id": "a", "query": "x", "expected": {"calls": [{"fn": 1}]}}, "expected.calls holds"),
        ({"id": "a", "query": "x", "tools": [{"name": "a b"}]}, "a b"),
    ],
)
def test_mistakes_are_named(line, said):
    with pytest.raises(ValueError, match="here") as error:
        read_task(line, "here")
    assert said in str(error.value)


def test_files(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"id": "a", "query": "x"}\n\n{"id": "b", "query": "y"}\n')
    assert [task.id for task in read_tasks(path)] == ["a", "b"]
    path.write_text('{"id": "a", "query": "x"}\n{"id": "a", "query": "y"}\n')
    with pytest.raises(TaskError, match="line 2.*'a'"):
        read_tasks(path)
    path.write_text("\n")
    with pytest.raises(TaskError, match="no task"):
        read_tasks(path)
    path.write_text('{"id": }\n')
    with pytest.raises(TaskError, match="line 1"):
        read_tasks(path)
    with pytest.raises(TaskError, match="cannot be read"):
        read_tasks(tmp_path / "none.jsonl")


def test_builtin_tasks(tmp_path):
    tasks = builtin_tasks()
    assert len({task.id for task in tasks}) == 40
    assert sum(bool(task.needs_tool) for task in tasks) == 20
    assert all(task.expected.answers for task in tasks)
    assert len(json.dumps([task.to_json() for task in tasks])) < 30_000
    write_documents(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")) == sorted(
        DOCUMENTS
    )
