"""Calls made from a gold answer, which lists the allowed values of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents_jax.tools.bfcl.checker import check
from agents_jax.tools.bfcl.data import ANSWERED_CATEGORIES, Item
from agents_jax.tools.bfcl.languages import parse_language_calls, render_language_calls
from agents_jax.tools.calls import Call, CallParseError, render_calls


def gold_calls(item: Item, rng: np.random.Generator | None = None) -> list[Call]:
    """Calls that the item's gold answer allows.

    Args:
      rng: None takes the first allowed value of every parameter and leaves out a parameter whose
        first allowed value is "" and which is not required; a generator draws among the allowed
        values, leaving out among them.

    Returns:
      One call per call that is due; none where the category has no gold answer.
    """
    schemas = {f["name"]: f["parameters"] for f in item.raw_functions}
    return [
        Call(name, _arguments(allowed, schemas.get(name, {}), rng))
        for answer in item.ground_truth
        for name, allowed in answer.items()
    ]


def _arguments(
    allowed: Mapping[str, Sequence], schema: Mapping[str, Any], rng: np.random.Generator | None
) -> dict[str, Any]:
    required = schema.get("required", ())
    arguments = {}
    for name, values in allowed.items():
        if name not in schema.get("properties", ()) and "" in values:
            continue  # a slip of the data: allowed in the answer, unknown to the function
        choices = [v for v in values if v != ""] if name in required else values
        chosen = _choose(choices or values, rng)
        if chosen != "" or name in required:
            arguments[name] = chosen
    return {n: v for n, v in arguments.items() if v is not _NOTHING}


_NOTHING = object()  # chosen where nothing is allowed: such an item cannot be solved


def _choose(values: Sequence, rng: np.random.Generator | None) -> Any:
    if not values:
        return _NOTHING
    value = values[0 if rng is None else int(rng.integers(len(values)))]
    if isinstance(value, Mapping):
        return _fields(value, rng)
    if isinstance(value, list):
        return [_fields(v, rng) if isinstance(v, Mapping) else v for v in value]
    return value


def _fields(allowed: Mapping[str, Sequence], rng: np.random.Generator | None) -> dict[str, Any]:
    """One allowed value of each key of a dict; what lies deeper is a value as it stands."""
    chosen = {
        key: values[0 if rng is None else int(rng.integers(len(values)))]
        for key, values in allowed.items()
    }
    return {key: value for key, value in chosen.items() if value != ""}


def gold_text(item: Item, rng: np.random.Generator | None = None) -> str:
    """The text of `gold_calls` in the item's language: Python, Java or JavaScript."""
    calls = gold_calls(item, rng)
    if item.language == "python":
        return render_calls(calls)
    return render_language_calls(calls, item.raw_functions, item.language)


def is_solvable(item: Item) -> bool:
    """Whether the calls made from the gold answer pass the check; true where only making a call or
    not counts.

    A few live items contradict themselves. In Java the leaderboard's reader loses what stands in
    the body of a new object, and keeps the quotes of strings in arrays.
    """
    if item.category not in ANSWERED_CATEGORIES:
        return True
    calls = gold_calls(item)
    if item.language != "python":
        try:
            calls = parse_language_calls(gold_text(item), item.language)
        except CallParseError:
            return False
    return check(item, calls).valid
