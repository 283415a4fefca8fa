"""Messages of a multi-turn conversation: its opening, functions that are added, results."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents_jax.tools.bfcl.data import WHEEL, to_json_schema
from agents_jax.tools.bfcl.multi_turn.data import MultiTurnItem
from agents_jax.tools.bfcl.prompts import Style, prompt_messages
from agents_jax.tools.calls import Call, render_calls
from pangu_jax.data.wheel import fetch_member

_ADDED = "From now on these functions can be used, too: {functions}"


def opening_messages(
    item: MultiTurnItem, style: Style = "compact", *, native: bool = False
) -> list[dict[str, Any]]:
    """The messages of the first turn, below a system message with the functions; native calls have
    none, since the functions go beside the messages."""
    if native:
        return [dict(message) for message in item.turns[0]]
    return prompt_messages(item.opening(), style)


def turn_messages(
    item: MultiTurnItem, turn: int, style: Style = "compact", *, native: bool = False
) -> list[dict[str, Any]]:
    """The user's messages of a later turn, or the one that tells of added functions.

    The 'official' words are read from the pinned wheel, those of 'compact' are ours.
    """
    added = item.added_functions.get(turn)
    if not added:
        return [dict(message) for message in item.turns[turn]]
    if native:
        text = _official_added()
    elif style == "official":
        text = f"{list(added)}\n{_official_added()}"
    else:
        functions = [to_json_schema(f) for f in added]
        text = _ADDED.format(
            functions=json.dumps(functions, separators=(",", ":"), ensure_ascii=False)
        )
    return [{"role": "user", "content": text}]


def tool_definitions(item: MultiTurnItem, turn: int) -> tuple[dict[str, Any], ...]:
    """The functions offered in a turn, in the form of the OpenAI protocol."""
    added = [f for index in sorted(item.added_functions) if index <= turn
             for f in item.added_functions[index]]  # fmt: skip
    return tuple(
        {"type": "function", "function": to_json_schema(f)} for f in (*item.raw_functions, *added)
    )


def result_messages(
    calls: Sequence[Call], results: Sequence[str], *, as_tool: bool = False
) -> list[dict[str, Any]]:
    """The results of a step in a prompted conversation.

    One message of the user that holds a list, as the leaderboard gives it to models behind
    endpoints, or with `as_tool` one message of the role 'tool' per call, as it gives it to models
    that it runs itself (with an id, which our local engine asks for). Endpoints tend to refuse that
    role after a message without tool calls.
    """
    each = [
        {"role": "tool", "name": _written(call), "content": result}
        for call, result in zip(calls, results, strict=True)
    ]
    if as_tool:
        return [one | {"tool_call_id": f"call_{i}"} for i, one in enumerate(each)]
    return [{"role": "user", "content": repr(each)}]


def native_result_messages(
    text: str, calls: Sequence[Mapping[str, str]], results: Sequence[str]
) -> list[dict[str, Any]]:
    """A step in the OpenAI protocol: the model's message with its calls, a message per result.

    calls: {'id', 'name', 'arguments'} each, the arguments as JSON text.
    """
    made = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for call in calls
    ]
    return [
        {"role": "assistant", "content": text, "tool_calls": made},
        *(
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call, result in zip(calls, results, strict=True)
        ),
    ]


def _written(call: Call) -> str:
    try:
        return render_calls([call])[1:-1]
    except ValueError:  # a name that is no identifier
        return call.name


@functools.cache
def _official_added(cache: Path | None = None) -> str:
    """The leaderboard's sentence on added functions, a literal in a file of the wheel."""
    name = "DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC"
    path = fetch_member(WHEEL, "bfcl_eval/constants/default_prompts.py", cache=cache)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise LookupError(f"{path} has no {name}")
