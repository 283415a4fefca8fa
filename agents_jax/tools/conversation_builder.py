"""A conversation with calls of tools, built message by message and checked on the way."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agents_jax.tools.calls import Call
from agents_jax.tools.definitions import (
    ArgumentError,
    ToolDefinition,
    ToolDefinitionError,
    check_arguments,
    read_tools,
)
from agents_jax.tools.schemas import show

MISFIT = "calls whose arguments do not fit the definition"
"""A note, and the reason where such conversations are left out."""


class ConversationError(ValueError):
    """A conversation that cannot be read; `reason` is its kind, the message says where and what."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in the OpenAI form, arguments of calls as objects; tools on offer; its origin.

    notes: what was changed on reading, or does not fit, by kind.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[ToolDefinition, ...]
    where: str = ""
    notes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """{'messages', 'tools'}, plain JSON."""
        return {"messages": list(self.messages), "tools": [tool.openai() for tool in self.tools]}

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls, in their order."""
        found = [call["function"] for m in self.messages for call in m.get("tool_calls", ())]
        return tuple(Call(call["name"], call["arguments"]) for call in found)


def offered(values: Any, where: str) -> tuple[ToolDefinition, ...]:
    """The tools on offer; as `read_tools`, with a ConversationError."""
    try:
        return read_tools(values, where=f"{where}: tools")
    except ToolDefinitionError as error:
        raise ConversationError("tools that are not taken", str(error)) from None


class ConversationBuilder:
    """Messages one after another, checked: calls name tools on offer, results answer calls."""

    def __init__(self, tools: Sequence[ToolDefinition], where: str):
        self.notes: collections.Counter[str] = collections.Counter()
        self._tools, self._where = {tool.name: tool for tool in tools}, where
        self._messages: list[dict[str, Any]] = []
        self._open: dict[str, str] = {}  # ids of calls without a result: names
        self._count = 0

    @property
    def open_calls(self) -> tuple[str, ...]:
        """Ids of the last turn's calls that have no result yet, in their order."""
        return tuple(self._open)

    def say(self, role: Literal["system", "user"], text: str) -> None:
        """A message of the system or the user."""
        self._messages.append({"role": role, "content": text})

    def answer(self, text: str, calls: Sequence[Call], ids: Sequence[str | None], at: str) -> None:
        """A message of the model: text, calls, or both.

        Raises:
          ConversationError: a call of a tool that is not on offer.
        """
        message: dict[str, Any] = {"role": "assistant", "content": text}
        self._open = {}
        for call, given in zip(calls, ids, strict=True):
            if call.name not in self._tools:
                names = ", ".join(self._tools)[:300] or "none"
                raise ConversationError(
                    "call of a tool that is not on offer",
                    f"{at} calls {call.name!r}; on offer: {names}.",
                )
            try:
                arguments = check_arguments(self._tools[call.name], call.arguments)
            except ArgumentError:
                self.notes[MISFIT] += 1
                arguments = call.arguments
            id_ = given or f"call_{self._count}"
            if id_ in self._open:
                raise ConversationError("ids of calls", f"{at} has the id {id_!r} twice.")
            self._count += 1
            self._open[id_] = call.name
            function = {"name": call.name, "arguments": arguments}
            message.setdefault("tool_calls", []).append(
                {"id": id_, "type": "function", "function": function}
            )
        self._messages.append(message)

    def result(self, text: str, id_: Any, at: str) -> None:
        """The result of a call of the model's last turn.

        Raises:
          ConversationError: no open call has this id.
        """
        if id_ not in self._open:
            waiting = ", ".join(map(repr, self._open)) or "none"
            raise ConversationError(
                "result without a call",
                f"{at}: 'tool_call_id' is {show(id_)}; calls that wait for a result: {waiting}.",
            )
        name = self._open.pop(id_)
        self._messages.append({"role": "tool", "tool_call_id": id_, "name": name, "content": text})

    def finish(self) -> Conversation:
        """The conversation.

        Raises:
          ConversationError: the model says nothing in it, or speaks first.
        """
        if not any(message["role"] == "assistant" for message in self._messages):
            raise ConversationError(
                "no assistant's turn", f"{self._where}: no turn of the assistant to learn from."
            )
        if self._messages[0]["role"] == "assistant":
            raise ConversationError(
                "begins with the assistant",
                f"{self._where}: the first turn is the assistant's; there is nothing to answer to.",
            )
        tools = tuple(self._tools.values())
        return Conversation(tuple(self._messages), tools, self._where, dict(self.notes))
