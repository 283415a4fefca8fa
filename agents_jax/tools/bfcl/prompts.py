"""Prompts for BFCL items and chat examples for training.

Two styles: 'official', the leaderboard's default for models that are prompted (its text is read
from the pinned wheel, not kept here), and 'compact', ours: one line and compact JSON, about half
the tokens.
"""

from __future__ import annotations

import ast
import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agents_jax.tools.bfcl.data import ANSWERED_CATEGORIES, WHEEL, Item
from agents_jax.tools.bfcl.gold import gold_calls, gold_text
from agents_jax.tools.calls import Form, render_calls
from pangu_jax.data.wheel import fetch_member

Style = Literal["compact", "official"]
REFUSAL = "None of the functions can be used."
"""Answer that training teaches where no call is due (ours)."""
_COMPACT = (
    "Answer with function calls only: [name(parameter=value)]. "
    f"If no function fits: {REFUSAL}\nFunctions: "
)
_OFFICIAL_NAMES = (
    "OUTPUT_FORMAT_MAPPING",
    "PARAM_TYPE_MAPPING",
    "PROMPT_STYLE_TEMPLATES",
    "_PLAINTEXT_SYSTEM_PROMPT_TEMPLATE",
)
_HINT = " Note that the provided function is in Python 3 syntax."  # added by BFCL's loader


def prompt_messages(
    item: Item, style: Style = "compact", *, cache: Path | None = None
) -> list[dict[str, str]]:
    """The conversation to complete: a system message with the functions, then the item's messages.

    A system message of the item itself is joined to it, after a blank line, as BFCL does.

    Raises:
      ValueError: an unknown style; 'official' for Java or JavaScript, whose descriptions the
        leaderboard words in its code.
      WheelError: the official text cannot be had.
    """
    if style == "compact":
        system = _COMPACT + json.dumps(
            item.functions, separators=(",", ":"), ensure_ascii=False, default=list
        )
    elif style == "official":
        if item.language != "python":
            raise ValueError(
                f"{item.id}: the official prompt is read for Python items; use style='compact' for "
                f"{item.category}."
            )
        system = _official_system(item, cache)
    else:
        raise ValueError(f"prompt style {style!r} is unknown; allowed: compact, official.")
    messages = [dict(message) for message in item.messages]
    if messages and messages[0]["role"] == "system":
        system += "\n\n" + messages.pop(0)["content"]
    return [{"role": "system", "content": system}, *messages]


def to_chat(
    item: Item,
    style: Style = "compact",
    rng: np.random.Generator | None = None,
    *,
    form: Form = "python",
    cache: Path | None = None,
) -> dict[str, Any]:
    """A training example {'messages': [..., {'role': 'assistant', 'content': gold answer}]}.

    Args:
      item: with a gold answer, or an irrelevance item (the answer is REFUSAL).
      style: of the prompt, see `prompt_messages`.
      rng: draws among the allowed values; None takes the first, see `gold_calls`.
      form: of the calls; the prompts ask for 'python'. Java and JavaScript items have calls in
        their own language whatever it says.

    Raises:
      ValueError: a relevance item, which has no gold answer; what `prompt_messages` raises.
    """
    if item.language != "python":
        answer = gold_text(item, rng)
    elif item.category in ANSWERED_CATEGORIES:
        answer = render_calls(gold_calls(item, rng), form)
    elif "irrelevance" in item.category:
        answer = REFUSAL
    else:
        raise ValueError(f"{item.id}: items of {item.category} have no gold answer to train on.")
    messages = prompt_messages(item, style, cache=cache)
    return {"messages": [*messages, {"role": "assistant", "content": answer}]}


def write_chats(
    path: str | os.PathLike,
    items: Iterable[Item],
    style: Style = "compact",
    rng: np.random.Generator | None = None,
) -> int:
    """Writes `to_chat` of each item as a line of JSON; returns their number."""
    lines = [json.dumps(to_chat(item, style, rng), ensure_ascii=False) + "\n" for item in items]
    Path(path).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _official_system(item: Item, cache: Path | None) -> str:
    parts = _official_texts(cache)
    style = parts["PROMPT_STYLE_TEMPLATES"]["classic"]
    functions = [{**f, "description": f.get("description", "") + _HINT} for f in item.raw_functions]
    return parts["_PLAINTEXT_SYSTEM_PROMPT_TEMPLATE"].format(
        persona=style["persona"],
        task=style["task"],
        tool_call_format=style["tool_call_no_tag"].format(
            output_format=parts["OUTPUT_FORMAT_MAPPING"]["python"],
            param_types=parts["PARAM_TYPE_MAPPING"]["python"],
        ),
        multiturn_behavior=style["multiturn_behavior"],
        available_tools=style["available_tools"].format(
            format="json", functions=json.dumps(functions, indent=4)
        ),
    )


@functools.cache
def _official_texts(cache: Path | None) -> dict[str, Any]:
    """String constants of the wheel's module of prompts, read as literals: nothing is executed."""
    path = fetch_member(WHEEL, "bfcl_eval/constants/default_prompts.py", cache=cache)
    texts = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in _OFFICIAL_NAMES:
                texts[node.targets[0].id] = ast.literal_eval(node.value)
    return texts
