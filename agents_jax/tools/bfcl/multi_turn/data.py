"""BFCL's multi-turn items: conversations, environments with a state, gold calls per turn."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents_jax.tools.bfcl.data import WHEEL, BfclDataError, Item, to_json_schema
from agents_jax.tools.bfcl.multi_turn.sandbox import ENVIRONMENTS
from agents_jax.tools.calls import Call
from pangu_jax.data.wheel import fetch_member

MULTI_TURN_CATEGORIES: dict[str, int] = {
    "multi_turn_base": 200,
    "multi_turn_miss_func": 200,
    "multi_turn_miss_param": 200,
    "multi_turn_long_context": 200,
}
"""Categories and their numbers of items: as they are; with functions that are offered only in a
later turn; with a parameter that the user tells only in a later turn; with long texts and lists in
the environments."""
_FOLDER = "bfcl_eval/data"


@dataclasses.dataclass(frozen=True)
class MultiTurnItem:
    """One conversation.

    turns: the messages of each turn, {'role', 'content'}; empty where only functions are added.
    raw_functions: descriptions offered from the start, in BFCL's form.
    added_functions: descriptions that are offered from a turn on, by its index.
    involved_classes: environments whose methods may be called. initial_config: their states.
    excluded_functions: names that the data say to exclude; nothing reads them, the leaderboard
      offers them too.
    ground_truth: calls per turn; a turn without calls is one in which the model cannot act yet.
    """

    id: str
    category: str
    turns: tuple[tuple[Mapping[str, str], ...], ...]
    raw_functions: tuple[Mapping[str, Any], ...]
    added_functions: Mapping[int, tuple[Mapping[str, Any], ...]]
    involved_classes: tuple[str, ...]
    initial_config: Mapping[str, Any]
    excluded_functions: tuple[str, ...]
    ground_truth: tuple[tuple[Call, ...], ...]

    @property
    def long_context(self) -> bool:
        """Whether the environments add long texts and lists to their states."""
        return "long_context" in self.category

    def opening(self) -> Item:
        """The first turn as an item of one turn, for `prompts.prompt_messages`."""
        return Item(
            id=self.id,
            category=self.category,
            messages=self.turns[0],
            functions=tuple(to_json_schema(f) for f in self.raw_functions),
            raw_functions=self.raw_functions,
        )


def load_multi_turn(
    categories: str | Iterable[str] = tuple(MULTI_TURN_CATEGORIES), *, cache: Path | None = None
) -> list[MultiTurnItem]:
    """Items of the categories, in the order asked and of the files.

    Args:
      categories: names out of MULTI_TURN_CATEGORIES; one or several.
      cache: folder of the wheels in place of `pangu_jax.data.wheel.cache_dir()`.

    Raises:
      BfclDataError: unknown category; items that are not counted, answered or aligned as pinned.
      WheelError: the wheel cannot be had.
    """
    names = [categories] if isinstance(categories, str) else list(categories)
    items = []
    for name in names:
        if name not in MULTI_TURN_CATEGORIES:
            raise BfclDataError(
                f"BFCL multi-turn category {name!r} is unknown; "
                f"allowed: {', '.join(MULTI_TURN_CATEGORIES)}."
            )
        questions, answers = (
            _lines(fetch_member(WHEEL, f"{_FOLDER}/{folder}BFCL_v4_{name}.json", cache=cache))
            for folder in ("", "possible_answer/")
        )
        if [q["id"] for q in questions] != [a["id"] for a in answers]:
            raise BfclDataError(f"Questions and answers of {name} do not have the same ids.")
        if len(questions) != MULTI_TURN_CATEGORIES[name]:
            raise BfclDataError(
                f"{name} has {len(questions)} items; "
                f"{MULTI_TURN_CATEGORIES[name]} are in the pinned version."
            )
        items += [
            make_multi_turn_item(q, name, a["ground_truth"], function_docs(cache))
            for q, a in zip(questions, answers, strict=True)
        ]
    return items


@functools.cache
def function_docs(cache: Path | None = None) -> dict[str, tuple[dict[str, Any], ...]]:
    """Descriptions of the functions of each environment, in BFCL's form.

    Raises:
      WheelError: the wheel cannot be had.
    """
    paths = fetch_member(
        WHEEL,
        [f"{_FOLDER}/multi_turn_func_doc/{file}.json" for file in ENVIRONMENTS.values()],
        cache=cache,
    )
    return {name: tuple(_lines(path)) for name, path in zip(ENVIRONMENTS, paths, strict=True)}


def make_multi_turn_item(
    entry: Mapping[str, Any],
    category: str,
    ground_truth: Sequence[Sequence[str]],
    docs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> MultiTurnItem:
    """An item from a line of a BFCL file and the functions' descriptions by environment.

    Raises:
      BfclDataError: an environment that may not run, turns and gold turns that do not match, a gold
        call that is not made of literals.
    """
    unknown = [name for name in entry["involved_classes"] if name not in ENVIRONMENTS]
    if unknown:
        raise BfclDataError(
            f"{entry['id']} involves {unknown[0]!r}; allowed: {', '.join(ENVIRONMENTS)}."
        )
    if len(entry["question"]) != len(ground_truth):
        raise BfclDataError(
            f"{entry['id']} has {len(entry['question'])} turns and {len(ground_truth)} gold turns."
        )
    functions = [dict(f) for name in entry["involved_classes"] for f in docs[name]]
    by_name = {f["name"]: f for f in functions}
    missed = {
        int(turn): tuple(by_name[name] for name in names if name in by_name)
        for turn, names in entry.get("missed_function", {}).items()
    }
    later = {f["name"] for added in missed.values() for f in added}
    return MultiTurnItem(
        id=entry["id"],
        category=category,
        turns=tuple(tuple(messages) for messages in entry["question"]),
        raw_functions=tuple(f for f in functions if f["name"] not in later),
        added_functions=missed,
        involved_classes=tuple(entry["involved_classes"]),
        initial_config=entry["initial_config"],
        excluded_functions=tuple(entry.get("excluded_function", ())),
        ground_truth=tuple(
            tuple(_gold_call(text, by_name, entry["id"]) for text in calls)
            for calls in ground_truth
        ),
    )


def _gold_call(text: str, functions: Mapping[str, Mapping[str, Any]], item: str) -> Call:
    """A gold call, in which arguments without a name have that of the description's parameter."""
    try:
        node = ast.parse(text, mode="eval").body
        name = node.func.id
        names = list(functions[name]["parameters"]["properties"])
        named = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
        placed = [ast.literal_eval(value) for value in node.args]
    except (SyntaxError, ValueError, AttributeError, KeyError) as error:
        raise BfclDataError(f"{item}: the gold call {text!r} cannot be read: {error}.") from error
    return Call(name, dict(zip(names, placed, strict=False)) | named)


def _lines(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]
