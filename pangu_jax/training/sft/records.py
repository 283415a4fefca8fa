"""Chats and pairs of answers out of records of JSON lines, Parquet or memory, checked.

A record is a mapping. Which keys it has says what it is: 'messages', 'conversations' (ShareGPT),
'prompt' with 'completion', or 'prompt' with 'chosen' and 'rejected'.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pangu_jax.training.sft.errors import FineTuneError

Message = dict[str, Any]
Kind = Literal["messages", "conversations", "completion", "preference"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# The two vocabularies seen under 'from' in ShareGPT files; those of ROLES are taken as well.
_FROM = {
    "human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool",
    "bing": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of a record's keys. weight: of the example in the loss, 1 where a record has none."""

    messages: str = "messages"
    conversations: str = "conversations"
    tools: str = "tools"
    prompt: str = "prompt"
    completion: str = "completion"
    chosen: str = "chosen"
    rejected: str = "rejected"
    weight: str = "weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
    """messages with an assistant's turn at least; tools: JSON schemas or None; where: its origin.

    raw: `messages` is [prompt, completion] as plain text, not for a template.
    """

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None
    weight: float = 1.0
    where: str = ""
    raw: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two chats that differ in the last assistant's turn, the first being the better one."""

    chosen: Chat
    rejected: Chat

    @property
    def weight(self) -> float:
        return self.chosen.weight

    @property
    def where(self) -> str:
        return self.chosen.where


def kind_of(record: Mapping[str, Any], columns: Columns, where: str) -> Kind:
    """What a record is, by its keys.

    Raises:
      FineTuneError: none of the known sets of keys; names those found and those looked for.
    """
    has = {name for name, key in dataclasses.asdict(columns).items() if _present(record, key)}
    if {"chosen", "rejected"} <= has:
        return "preference"
    if "messages" in has:
        return "messages"
    if "conversations" in has:
        return "conversations"
    if {"prompt", "completion"} <= has:
        return "completion"
    raise FineTuneError(
        f"{where}: a record needs {columns.messages!r}, {columns.conversations!r}, "
        f"{columns.prompt!r} with {columns.completion!r}, or {columns.chosen!r} with "
        f"{columns.rejected!r}; it has {', '.join(map(repr, record)) or 'nothing'}. Rename the "
        "columns, or name yours with --config.data.columns.*."
    )


def parse_chat(
    record: Mapping[str, Any], where: str, columns: Columns | None = None, *, raw: bool = False
) -> Chat:
    """A checked chat.

    Args:
      where: file and line (or row) for messages.
      raw: take 'prompt' and 'completion' as plain text instead of a user's and an assistant's
        turn.

    Raises:
      FineTuneError: names where, what was found and what is needed.
    """
    columns = columns or Columns()
    kind = kind_of(record, columns, where)
    weight = _weight(record, columns, where)
    if kind == "preference":
        raise FineTuneError(
            f"{where} is a pair of a better and a worse answer, which --config.objective=dpo takes;"
            " here whole chats are needed (one answer each)."
        )
    if kind == "completion":
        prompt, answer = record[columns.prompt], record[columns.completion]
        if raw:
            _text(prompt, where, columns.prompt)
            _text(answer, where, columns.completion)
            messages = ({"content": prompt}, {"content": answer})
            return Chat(messages=messages, weight=weight, where=where, raw=True)
        messages = _turns(prompt, "user", where, columns.prompt)
        messages += _turns(answer, "assistant", where, columns.completion)
    else:
        key = columns.messages if kind == "messages" else columns.conversations
        messages = _messages(record[key], where, key)
    if raw:
        raise FineTuneError(
            f"{where}: --config.data.template=none takes plain {columns.prompt!r} and "
            f"{columns.completion!r}; chats with roles need a template ('chat')."
        )
    _needs_answer(messages, where)
    tools = _tools(record.get(columns.tools), where, columns.tools)
    return Chat(messages=tuple(messages), tools=tools, weight=weight, where=where)


def parse_pair(record: Mapping[str, Any], where: str, columns: Columns | None = None) -> Pair:
    """A checked pair: 'chosen' and 'rejected' are text, the answer's messages, or whole chats.

    Without 'prompt' they are whole chats that begin alike.

    Raises:
      FineTuneError: names where, what was found and what is needed.
    """
    columns = columns or Columns()
    if kind_of(record, columns, where) != "preference":
        raise FineTuneError(
            f"{where}: --config.objective=dpo needs {columns.chosen!r} and {columns.rejected!r}; "
            f"the record has {', '.join(map(repr, record))}. Name yours with "
            "--config.data.columns.chosen and .rejected."
        )
    weight = _weight(record, columns, where)
    tools = _tools(record.get(columns.tools), where, columns.tools)
    prompt = []
    if _present(record, columns.prompt):
        prompt = _turns(record[columns.prompt], "user", where, columns.prompt)
    chats = []
    for key in (columns.chosen, columns.rejected):
        answer = _turns(record[key], "assistant", where, key)
        # Some sets repeat the prompt at the head of both answers.
        whole = answer if answer[: len(prompt)] == prompt else prompt + answer
        _needs_answer(whole, f"{where}: {key!r}", last=True)
        chats.append(Chat(messages=tuple(whole), tools=tools, weight=weight, where=where))
    chosen, rejected = chats
    if chosen.messages[:-1] != rejected.messages[:-1]:
        raise FineTuneError(
            f"{where}: {columns.chosen!r} and {columns.rejected!r} must be answers to the same "
            "prompt; they differ before the last turn."
        )
    if chosen.messages == rejected.messages:
        raise FineTuneError(
            f"{where}: {columns.chosen!r} and {columns.rejected!r} are the same; there is nothing "
            "to prefer. Leave the record out."
        )
    return Pair(chosen=chosen, rejected=rejected)


def _present(record, key) -> bool:
    return record.get(key) is not None


def _weight(record, columns, where) -> float:
    value = record.get(columns.weight)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise FineTuneError(
            f"{where}: {columns.weight!r} is {value!r}; a finite number of 0 or more is needed."
        )
    return float(value)


def _turns(value: Any, role: str, where: str, key: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _messages(value, where, key)


def _messages(value: Any, where: str, key: str) -> list[Message]:
    if isinstance(value, str):
        value = _json(value, where, key)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise FineTuneError(
            f"{where}: {key!r} is {_show(value)}; a list of messages such as "
            '[{"role": "user", "content": "..."}, ...] is needed.'
        )
    if not value:
        raise FineTuneError(f"{where}: {key!r} is empty; give the chat's messages or leave it out.")
    return [_message(m, f"{where}: {key}[{i}]") for i, m in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise FineTuneError(f"{where} is {_show(value)}; an object with role and content is due.")
    message = _without_none(value)
    if "role" not in message and "from" in message:
        name = message.pop("from")
        message["role"] = _FROM.get(name, name)
        message["content"] = message.pop("value", None)
    role = message.get("role")
    if role not in ROLES:
        raise FineTuneError(
            f"{where} has the role {role!r}; allowed are {', '.join(ROLES)} (under 'from' also "
            f"{', '.join(_FROM)})."
        )
    content = message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        content = ""  # templates add it to text
    _text(content, where, "content")
    # A stable order of keys, whatever the file's.
    return {"role": role, "content": content} | message | {"content": content}


def _text(value: Any, where: str, key: str) -> None:
    if not isinstance(value, str):
        raise FineTuneError(f"{where}: {key!r} is {_show(value)}; text is needed.")


def _needs_answer(messages: Sequence[Message], where: str, last: bool = False) -> None:
    roles = [message["role"] for message in messages]
    if last and roles[-1] != "assistant":
        raise FineTuneError(f"{where} ends with the role {roles[-1]!r}; the answer must be last.")
    if "assistant" not in roles:
        raise FineTuneError(
            f"{where} has no assistant's turn (roles: {', '.join(roles)}), so there is nothing to "
            "learn from it; leave it out."
        )
    if roles[0] == "assistant":
        raise FineTuneError(
            f"{where} begins with an assistant's turn; a turn before it is needed to answer to."
        )


def _tools(value: Any, where: str, key: str) -> tuple[Any, ...] | None:
    if isinstance(value, str):
        value = _json(value, where, key) if value.strip() else None
    if value is None or value == []:
        return None
    if not isinstance(value, Sequence) or not all(isinstance(tool, Mapping) for tool in value):
        raise FineTuneError(f"{where}: {key!r} is {_show(value)}; a list of JSON schemas is due.")
    return tuple(_without_none(tool) for tool in value)


def _json(text: str, where: str, key: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FineTuneError(f"{where}: {key!r} is text, but not JSON ({error}).") from error


def _without_none(value: Any) -> Any:
    """Parquet gives every object of a column the keys of all of them, with null where absent."""
    if isinstance(value, Mapping):
        return {key: _without_none(x) for key, x in value.items() if x is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(x) for x in value]
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"
