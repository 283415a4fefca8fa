"""Conversations with calls of tools, out of files in two forms, into one form of records.

A record is {'messages', 'tools'} as the OpenAI protocol has it, with the arguments of calls as
objects, which is what chat templates expect. What cannot be read is counted by reason, with the
first places.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agents_jax.tools.calls import Call, CallParseError, Form
from agents_jax.tools.conversation_builder import (
    MISFIT,
    Conversation,
    ConversationBuilder,
    ConversationError,
    offered,
)
from agents_jax.tools.literals import read_json
from agents_jax.tools.schemas import show
from agents_jax.tools.toolace import from_toolace

FileForm = Literal["auto", "openai", "toolace"]
_PLACES = 3  # of each reason that a report names


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a file came to.

    refused: conversations left out by reason. notes: changes and misfits in those kept, by kind.
    examples: messages of the first few for each reason.
    """

    conversations: tuple[Conversation, ...]
    refused: Mapping[str, int]
    notes: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        kept, out = len(self.conversations), sum(self.refused.values())
        lines = [f"{kept} of {kept + out} conversations read."]
        for reason, count in self.refused.items():
            lines.append(f"  left out, {reason}: {count}")
            lines += [f"    {example}" for example in self.examples[reason]]
        lines += [f"  noted, {kind}: {count}" for kind, count in self.notes.items()]
        return "\n".join(lines)


def read_conversations(
    path: str | os.PathLike, form: FileForm = "auto", *, drop_misfits: bool = False
) -> Reading:
    """The conversations of a JSON-lines, JSON or Parquet file, or of all in a folder.

    Args:
      form: 'openai': {'messages', 'tools'} with `tool_calls` and messages of the role 'tool'.
        'toolace': {'system', 'conversations'} with the functions in the system prompt, see
        `toolace.py`. 'auto': by the keys of each record.
      drop_misfits: leave out conversations with a call whose arguments do not fit its definition;
        otherwise they are kept and noted.

    Raises:
      FineTuneError: the file itself cannot be read; names the line.
      ValueError: an unknown form.
    """
    from pangu_jax.training.sft.files import read_records

    if form not in ("auto", "openai", "toolace"):
        raise ValueError(f"form={form!r} is unknown; allowed: auto, openai, toolace.")
    kept: list[Conversation] = []
    refused: collections.Counter[str] = collections.Counter()
    notes: collections.Counter[str] = collections.Counter()
    examples: dict[str, list[str]] = {}
    for where, record in read_records(path):
        try:
            conversation = parse_conversation(record, where, form)
            misfits = conversation.notes.get(MISFIT, 0)
            if drop_misfits and misfits:
                message = f"{where}: arguments of {misfits} calls do not fit their definitions."
                raise ConversationError(MISFIT, message)
        except ConversationError as error:
            refused[error.reason] += 1
            places = examples.setdefault(error.reason, [])
            if len(places) < _PLACES:
                places.append(str(error))
            continue
        kept.append(conversation)
        notes.update(conversation.notes)
    shown = {reason: tuple(places) for reason, places in examples.items()}
    return Reading(tuple(kept), dict(refused), dict(notes), shown)


def parse_conversation(
    record: Mapping[str, Any], where: str, form: FileForm = "auto"
) -> Conversation:
    """One record's conversation.

    Raises:
      ConversationError: names where, what was found and what is needed.
    """
    if form == "auto":
        form = "toolace" if record.get("conversations") is not None else "openai"
    read: Callable[[Mapping[str, Any], str], Conversation] = {
        "openai": from_openai,
        "toolace": from_toolace,
    }[form]
    return read(record, where)


def from_openai(record: Mapping[str, Any], where: str) -> Conversation:
    """A conversation of {'messages', 'tools'}; values that are JSON text are read as such.

    Raises:
      ConversationError: see `parse_conversation`.
    """
    tools = offered(_loaded(record.get("tools"), where, "tools") or [], where)
    values = _loaded(record.get("messages"), where, "messages")
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ConversationError(
            "no messages", f"{where}: 'messages' is {show(values)}; a list of messages is needed."
        )
    builder = ConversationBuilder(tools, where)
    for index, value in enumerate(values):
        at = f"{where}: messages[{index}]"
        if not isinstance(value, Mapping):
            raise ConversationError("bad message", f"{at} is {show(value)}; an object is needed.")
        role, content = value.get("role"), value.get("content")
        calls = value.get("tool_calls") or []
        if content is None and role == "assistant" and calls:
            content = ""
        if not isinstance(content, str):
            raise ConversationError(
                "content that is not text", f"{at}: 'content' is {show(content)}; text is needed."
            )
        if role in ("system", "developer", "user"):
            builder.say("system" if role == "developer" else role, content)
        elif role == "assistant":
            read = [_call(call, f"{at}: tool_calls[{i}]") for i, call in enumerate(calls)]
            builder.answer(content, [call for call, _ in read], [id_ for _, id_ in read], at)
        elif role == "tool":
            builder.result(content, value.get("tool_call_id"), at)
        else:
            raise ConversationError(
                "unknown role",
                f"{at} has the role {show(role)}; allowed: system, developer, user, assistant, "
                "tool.",
            )
    return builder.finish()


def training_record(
    conversation: Conversation,
    style: Literal["native", "prompted"] = "prompted",
    *,
    form: Form = "python",
) -> dict[str, Any]:
    """The record of a chat for `pangu_jax.training.sft`.

    Args:
      style: 'native' keeps tools and calls apart from text, for chat templates that read them;
        'prompted' writes them into the messages as the agent loop does in this style, for templates
        that do not (SmolLM2's).
      form: of the calls in the prompted style.
    """  # fmt: skip
    if style == "native":
        return conversation.record()
    if style != "prompted":
        raise ValueError(f"style={style!r} is unknown; allowed: native, prompted.")
    from agents_jax.tools.agent.styles import request_fields

    fields = request_fields(style, conversation.messages, conversation.tools, "auto", form=form)
    return {"messages": fields["messages"]}


def write_training_records(
    path: str | os.PathLike,
    conversations: Iterable[Conversation],
    style: Literal["native", "prompted"] = "prompted",
    *,
    form: Form = "python",
) -> int:
    """Writes `training_record` of each conversation as a line of JSON; returns their number."""
    lines = [
        json.dumps(training_record(c, style, form=form), ensure_ascii=False) + "\n"
        for c in conversations
    ]
    Path(path).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _call(value: Any, at: str) -> tuple[Call, str | None]:
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping):
        raise ConversationError(
            "call that cannot be read", f'{at} is {show(value)}; {{"id", "function"}} is needed.'
        )
    try:
        # Through the reader of models' texts: the same values and limits.
        ((name, arguments),) = read_json(
            json.dumps({"name": function.get("name"), "arguments": function.get("arguments", {})})
        )
    except (CallParseError, TypeError, ValueError) as error:
        raise ConversationError("call that cannot be read", f"{at}: {error}.") from None
    return Call(name, arguments), value.get("id")


def _loaded(value: Any, where: str, key: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise ConversationError("not JSON", f"{where}: {key!r} is not JSON ({error}).") from None
