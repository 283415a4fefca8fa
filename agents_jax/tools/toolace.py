"""Conversations in the form of ToolACE's data, read into records with tools.

{'system', 'conversations'}: the functions stand as a JSON list in the system prompt, with BFCL's
names of types; calls are Python text in the assistant's turn (as published) or JSON in turns
'function_call' (as converted for other trainers). Names with blanks, such as 'Market Trends API',
become Market_Trends_API.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agents_jax.tools.bfcl.data import to_json_schema
from agents_jax.tools.calls import MAX_CHARS, Call, CallParseError, parse_calls
from agents_jax.tools.conversation_builder import (
    Conversation,
    ConversationBuilder,
    ConversationError,
    offered,
)
from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.literals import check_depth
from agents_jax.tools.schemas import show

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "function_call": "call", "observation": "tool", "tool": "tool", "function": "tool",
    "system": "system",
}  # fmt: skip
_TYPES = {"int": "integer", "str": "string", "list": "array", "bool": "boolean", "object": "dict"}
_LIST = re.compile(r"\[\s*(?=\{\s*\")|\[\s*\]")
_CALL_LIKE = re.compile(r"\[[^\[\]()\"'\n]{1,128}\(.*\)\s*\]$", re.DOTALL)
_STRING = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
RENAMED = "tools renamed"
COMPLETED = "names of calls completed"


def from_toolace(record: Mapping[str, Any], where: str) -> Conversation:
    """The conversation of a record {'system', 'conversations'}, and 'tools' where it has them.

    The system prompt is dropped where it only lists the functions. A call that names the end of an
    offered name only ('API' for 'Market Trends API', which a conversion of the data has made of
    nearly all) is completed where the name, or else its arguments, leave one choice.

    Raises:
      ConversationError: names where, what was found and what is needed.
    """
    system = record.get("system") or ""
    turns = record.get("conversations")
    if not isinstance(system, str) or not isinstance(turns, Sequence) or isinstance(turns, str):
        raise ConversationError(
            "not ToolACE's form",
            f"{where}: 'system' must be text and 'conversations' a list of turns; they are "
            f"{show(system)} and {show(turns)}.",
        )
    given = _functions(system, record.get("tools"), where)
    names, renamed = _names(given, where)
    tools = offered(
        [_schema(f, name, where) for f, name in zip(given, names.values(), strict=True)], where
    )
    builder = ConversationBuilder(tools, where)
    if renamed:
        builder.notes[RENAMED] += renamed
    if system.strip() and not _LIST.search(system):
        builder.say("system", system)
    by_name = dict(zip(names, tools, strict=True))
    for index, turn in enumerate(turns):
        at = f"{where}: conversations[{index}]"
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise ConversationError(
                "bad message", f"{at} is {show(turn)}; {{'from', 'value'}} is needed."
            )
        _add(builder, turn, by_name, at)
    return builder.finish()


def _add(
    builder: ConversationBuilder, turn: Mapping[str, Any], tools: Mapping[str, ToolDefinition],
    at: str,
) -> None:  # fmt: skip
    role, text = _ROLES.get(turn.get("from")), turn["value"]
    if role is None:
        raise ConversationError(
            "unknown role", f"{at} is from {show(turn.get('from'))}; known: {', '.join(_ROLES)}."
        )
    if role in ("system", "user"):
        builder.say(role, text)
    elif role == "tool":
        _results(builder, text, at)
    else:
        calls = _calls(text, tools, at, due=role == "call")
        known = [_completed(call, tools, builder) for call in calls]
        builder.answer("" if calls else text, known, [None] * len(known), at)


def _functions(system: str, beside: Any, where: str) -> list[Mapping[str, Any]]:
    """The descriptions in the system prompt, or under 'tools' where it has none."""
    found = _LIST.search(system)
    text = system[found.start() :] if found else beside
    if not isinstance(text, str) or not text.strip():
        value = text or []
    else:
        try:
            check_depth(text)
            value, _ = json.JSONDecoder().raw_decode(text.strip())
        except (ValueError, RecursionError) as error:
            raise ConversationError(
                "functions that cannot be read", f"{where}: the list of functions: {error}."
            ) from None
    if not isinstance(value, list) or not all(
        isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in value
    ):
        raise ConversationError(
            "functions that cannot be read",
            f"{where}: the functions are {show(value)}; a list of objects with names is needed.",
        )
    return [f.get("function", f) if "function" in f else f for f in value]


def _names(functions: Sequence[Mapping[str, Any]], where: str) -> tuple[dict[str, str], int]:
    """Names as given: as tools may have them; and how many differ.

    Raises:
      ConversationError: two of one name.
    """
    names: dict[str, str] = {}
    for function in functions:
        safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", function["name"]).strip("_")[:128]
        if function["name"] in names or safe in names.values():
            raise ConversationError(
                "tools that are not taken", f"{where}: two functions are named {safe!r}."
            )
        names[function["name"]] = safe
    return names, sum(name != safe for name, safe in names.items())


def _schema(function: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    try:
        parameters = _common_types(function.get("parameters") or {})
        return to_json_schema(
            {
                "name": name,
                "description": str(function.get("description") or ""),
                "parameters": {"type": "dict", **parameters},
            }
        )
    except (AttributeError, TypeError, RecursionError) as error:
        raise ConversationError(
            "tools that are not taken", f"{where}: the parameters of {name!r}: {error}."
        ) from None


def _common_types(node: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with types that `to_json_schema` knows; several types at once are none."""
    out = dict(node)
    kind = out.pop("type", None)
    if isinstance(kind, str):
        out["type"] = _TYPES.get(kind, kind)
    if out.get("properties") is not None:
        out["properties"] = {k: _common_types(v) for k, v in out["properties"].items()}
    if isinstance(out.get("items"), Mapping):
        out["items"] = _common_types(out["items"])
    else:
        out.pop("items", None)
    return out


def _calls(text: str, tools: Mapping[str, ToolDefinition], at: str, *, due: bool) -> list[Call]:
    """Calls of a turn under the names as given; [] for an answer in words."""
    text = text.strip()
    if not due and not (text.startswith("[") and len(text) <= MAX_CHARS):
        return []
    try:
        return _parse(text, list(tools))
    except CallParseError as error:
        if not due and not _CALL_LIKE.match(text):
            return []  # words that begin with a bracket
        raise ConversationError("call that cannot be read", f"{at}: {error}.") from None


def _parse(text: str, names: list[str]) -> list[Call]:
    """`parse_calls` where names may have blanks: an identifier stands in for each."""
    if re.match(r"\{|\[\s*\{", text) or not names or len(text) > MAX_CHARS:
        return parse_calls(text)
    longest = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"{_STRING}|(?<![\w.])({'|'.join(map(re.escape, longest))})\s*\(")

    def stand_in(match: re.Match) -> str:
        return match[0] if match[1] is None else f"tool_{names.index(match[1])}("

    calls = parse_calls(pattern.sub(stand_in, text))
    given = {f"tool_{index}": name for index, name in enumerate(names)}
    return [Call(given.get(call.name, call.name), call.arguments) for call in calls]


def _completed(
    call: Call, tools: Mapping[str, ToolDefinition], builder: ConversationBuilder
) -> Call:
    """The call under the tool's name; unchanged where none or several fit."""
    if call.name in tools:
        return Call(tools[call.name].name, call.arguments)
    ends = [
        tool
        for name, tool in tools.items()
        if name.endswith(call.name) and not name[: -len(call.name)][-1:].isalnum()
    ]
    if len(ends) > 1:
        given = set(call.arguments)
        ends = [t for t in ends if set(t.required) <= given <= set(t.properties)]
    if len(ends) != 1:
        return call
    builder.notes[COMPLETED] += 1
    return Call(ends[0].name, call.arguments)


def _results(builder: ConversationBuilder, text: str, at: str) -> None:
    """Results of the calls before: one text for one call, a JSON list of as many for several."""
    waiting = builder.open_calls
    texts = [text]
    if len(waiting) > 1:
        try:
            check_depth(text)
            entries = json.loads(text)
        except (ValueError, RecursionError):
            entries = None
        if not isinstance(entries, list) or len(entries) != len(waiting):
            raise ConversationError(
                "results that do not match their calls",
                f"{at}: {len(waiting)} calls wait for a result; a JSON list of as many is needed.",
            )
        texts = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    for id_, part in zip(waiting or (None,), texts, strict=True):
        builder.result(part, id_, at)
