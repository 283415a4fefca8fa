"""Tasks of an agent: what is asked, with which tools, and what is expected.

A line of a task file:

    {"id": "t1", "query": "What is 12 * 7?", "needs_tool": true,
     "expected": {"answer": 84, "calls": [{"name": "calculator"}]}}

'messages' (OpenAI form) may stand in place of 'query', and 'tools' (OpenAI definitions) in place of
the registry's tools.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agents_jax.llm import RecordingError, user
from agents_jax.llm.jsonl import read_lines
from agents_jax.tools.agent.policy import Message

if TYPE_CHECKING:
    from agents_jax.tools.definitions import ToolDefinition

_FIELDS = ("id", "query", "messages", "tools", "expected", "needs_tool")
_ROLES = ("system", "user", "assistant", "tool")


class TaskError(ValueError):
    """A task file, or a task in it, that cannot be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedCall:
    """A call that must be made; arguments None: with any."""

    name: str
    arguments: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
    """What a task expects; None asks for nothing.

    answers: the final answer holds one of them: a number (any number in the answer that equals it
      to 1e-6 relative, or to half a unit of its own last decimal place where it is not whole), or
      a text (as whole words, whatever the case).
    calls: each is made once at least; () expects that none is.
    """

    answers: tuple[float | int | str, ...] | None = None
    calls: tuple[ExpectedCall, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task. tools: None for those of the registry. needs_tool: None where nobody says."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] | None = None
    expected: Expected = Expected()
    needs_tool: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The task as a line of a task file; `read_task` gives it back."""
        line: dict[str, Any] = {"id": self.id, "messages": [dict(m) for m in self.messages]}
        if self.tools is not None:
            line["tools"] = [tool.openai() for tool in self.tools]
        expected: dict[str, Any] = {}
        if self.expected.answers is not None:
            expected["answer"] = list(self.expected.answers)
        if self.expected.calls is not None:
            expected["calls"] = [
                {"name": call.name}
                | ({} if call.arguments is None else {"arguments": dict(call.arguments)})
                for call in self.expected.calls
            ]
        if expected:
            line["expected"] = expected
        if self.needs_tool is not None:
            line["needs_tool"] = self.needs_tool
        return line


def read_tasks(path: str | os.PathLike[str]) -> tuple[Task, ...]:
    """All tasks of a JSON-lines file.

    Raises:
      TaskError: no such file, or a task that cannot be used; names the line.
    """
    path = pathlib.Path(path)
    tasks: dict[str, Task] = {}
    try:
        for number, line in read_lines(path):
            where = f"{path}, line {number}"
            task = read_task(line, where)
            if task.id in tasks:
                raise TaskError(
                    f"{where}: the id {task.id!r} stands there before; ids must differ."
                )
            tasks[task.id] = task
    except RecordingError as error:
        raise TaskError(f"Tasks: {error}") from error
    if not tasks:
        raise TaskError(f"{path} holds no task.")
    return tuple(tasks.values())


def read_task(line: Mapping[str, Any], where: str = "task") -> Task:
    """A task from a line of a file.

    Raises:
      TaskError: a field that is unknown, missing or wrong.
    """
    for field in line:
        if field not in _FIELDS:
            raise TaskError(f"{where}: the field {field!r} is unknown; fields: {_list(_FIELDS)}.")
    name = line.get("id")
    if not isinstance(name, str) or not name:
        raise TaskError(f"{where}: id={name!r} is not allowed; a text of its own is needed.")
    if ("query" in line) == ("messages" in line):
        raise TaskError(f"{where}: exactly one of 'query' and 'messages' is needed.")
    if "query" in line:
        if not isinstance(line["query"], str) or not line["query"].strip():
            raise TaskError(f"{where}: query={line['query']!r} is not allowed; a text is needed.")
        messages = (user(line["query"]),)
    else:
        messages = _messages(line["messages"], where)
    tools = None
    if "tools" in line:
        from agents_jax.tools.definitions import read_tools

        tools = tuple(read_tools(line["tools"], where=where))
    needs = line.get("needs_tool")
    if needs is not None and not isinstance(needs, bool):
        raise TaskError(f"{where}: needs_tool={needs!r} is not allowed; true, false or null.")
    return Task(
        id=name,
        messages=messages,
        tools=tools,
        expected=_expected(line.get("expected") or {}, where),
        needs_tool=needs,
    )


def _messages(messages: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise TaskError(f"{where}: messages must be a list of at least one message.")
    for index, message in enumerate(messages):
        at = f"{where}: messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise TaskError(f"{at} needs a 'role' of {_list(_ROLES)}.")
        calls = message.get("tool_calls")
        if not isinstance(message.get("content"), str) and not calls:
            raise TaskError(f"{at}: content={message.get('content')!r}; a text is needed.")
        for call in calls or ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or not all(
                isinstance(function.get(key), str) for key in ("name", "arguments")
            ):
                raise TaskError(
                    f"{at}: a tool call needs function.name and function.arguments (JSON text)."
                )
    if messages[-1]["role"] not in ("user", "tool"):
        raise TaskError(f"{where}: the last message must be by the user or a tool.")
    return tuple(messages)


def _expected(value: Any, where: str) -> Expected:
    if not isinstance(value, dict) or set(value) - {"answer", "calls"}:
        raise TaskError(f"{where}: expected={_show(value)}; an object of 'answer' and 'calls'.")
    answers = value.get("answer")
    if answers is not None:
        answers = tuple(answers) if isinstance(answers, list) else (answers,)
        for answer in answers:
            if (
                not isinstance(answer, int | float | str)
                or isinstance(answer, bool)
                or answer == ""
            ):
                raise TaskError(
                    f"{where}: expected.answer={_show(answer)}; a number, a text, or a list of "
                    "allowed ones."
                )
    calls = value.get("calls")
    if calls is not None:
        calls = tuple(_call(call, where) for call in _sequence(calls, where))
    return Expected(answers=answers, calls=calls)


def _sequence(calls: Any, where: str) -> Sequence[Any]:
    if not isinstance(calls, list):
        raise TaskError(f"{where}: expected.calls={_show(calls)}; a list of calls is needed.")
    return calls


def _call(value: Any, where: str) -> ExpectedCall:
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("name"), str)
        or not isinstance(value.get("arguments", {}), dict)
        or set(value) - {"name", "arguments"}
    ):
        raise TaskError(
            f"{where}: expected.calls holds {_show(value)}; "
            '{"name": text, "arguments": object} is needed, the arguments being optional.'
        )
    return ExpectedCall(name=value["name"], arguments=value.get("arguments"))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 120 else text[:120] + "…"
