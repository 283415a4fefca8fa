"""BFCL's single-turn items, read from the pinned bfcl-eval wheel (version 4 of the data).

Multi-turn items are in `multi_turn`. Left out: memory and web search, which need indexes of
embeddings and the live web.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agents_jax.tools.bfcl.languages import Language, described_as_text
from pangu_jax.data.wheel import fetch_member

WHEEL = "bfcl-eval"
LICENCE = (
    "Berkeley Function-Calling Leaderboard data, from bfcl-eval 2026.3.23: Apache-2.0. "
    "An evaluation set: a model trained on items may not be scored on them."
)
CITATION = (
    "Shishir G. Patil, Huanzhi Mao, Fanjia Yan, Charlie Cheng-Jie Ji, Vishnu Suresh, Ion Stoica, "
    "Joseph E. Gonzalez. The Berkeley Function Calling Leaderboard (BFCL): From Tool Use to "
    "Agentic Evaluation of Large Language Models. ICML 2025. "
    "https://gorilla.cs.berkeley.edu/leaderboard.html"
)
AST_CATEGORIES: dict[str, int] = {
    "simple_python": 400,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
}
"""Python categories whose answers are compared with a gold answer, and their numbers of items."""
LANGUAGE_CATEGORIES: dict[str, int] = {"simple_java": 100, "simple_javascript": 50}
"""The same in other languages; answers and values are in the syntax of the language."""
_LANGUAGES: dict[str, Language] = {"simple_java": "java", "simple_javascript": "javascript"}
ANSWERED_CATEGORIES: dict[str, int] = AST_CATEGORIES | LANGUAGE_CATEGORIES
"""All single-turn categories with gold answers."""
CATEGORIES: dict[str, int] = AST_CATEGORIES | {
    "irrelevance": 240,
    "live_irrelevance": 884,
    "live_relevance": 16,
}
"""All Python categories read here; in the last three only whether a call is made counts."""
# The types of BFCL's function descriptions in JSON Schema. Values of 'any' are strings in the
# data and in its checker.
_JSON_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "any": "string",
    "Boolean": "boolean",
    "String": "string",
    "Array": "array",
    "ArrayList": "array",
    "HashMap": "object",
    "long": "integer",
    "double": "number",
    "char": "string",
}
_JSON_SAME = ("string", "integer", "number", "boolean", "array", "object", "null")
_KEPT = ("description", "enum", "default", "format", "maximum", "minItems", "maxItems")


class BfclDataError(ValueError):
    """The data are not as pinned, or a category is not one of those read here."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    messages: the conversation, {'role', 'content'} each, the last from the user; a few live items
      have a system message or earlier turns.
    functions: descriptions with 'parameters' as JSON Schema; what prompts and grammars take.
      For Java and JavaScript every parameter is a string: the value as source text.
    raw_functions: the same as in the file (types 'dict', 'float', 'tuple', 'any'); what the checker
      and the official prompt take.
    ground_truth: per call that is due {function: {parameter: allowed values}}; "" among the values
      says that the parameter may be left out. Empty where the category has no gold answer.
    """

    id: str
    category: str
    messages: tuple[Mapping[str, str], ...]
    functions: tuple[Mapping[str, Any], ...]
    raw_functions: tuple[Mapping[str, Any], ...]
    ground_truth: tuple[Mapping[str, Mapping[str, list]], ...] = ()

    @property
    def language(self) -> Language | Literal["python"]:
        """Language of the calls that answer the item."""
        return _LANGUAGES.get(self.category, "python")

    @property
    def called_names(self) -> tuple[str, ...]:
        """Names of the functions that the gold answer calls, in its order."""
        return tuple(name for call in self.ground_truth for name in call)

    @property
    def offered_names(self) -> tuple[str, ...]:
        """Names of the functions that the model may choose from."""
        return tuple(function["name"] for function in self.raw_functions)


def load(
    categories: str | Iterable[str] = tuple(AST_CATEGORIES), *, cache: Path | None = None
) -> list[Item]:
    """Items of the categories, in the order asked and of the files.

    Args:
      categories: names out of CATEGORIES and LANGUAGE_CATEGORIES; one or several.
      cache: folder of the wheels in place of `pangu_jax.data.wheel.cache_dir()`.

    Raises:
      BfclDataError: unknown category; items that are not counted, answered or aligned as pinned.
      WheelError: the wheel cannot be had.
    """
    names = [categories] if isinstance(categories, str) else list(categories)
    for name in names:
        if name not in CATEGORIES and name not in LANGUAGE_CATEGORIES:
            allowed = ", ".join([*CATEGORIES, *LANGUAGE_CATEGORIES])
            raise BfclDataError(f"BFCL category {name!r} is not read here; allowed: {allowed}.")
    items: list[Item] = []
    for name in names:
        items += _read_category(name, cache)
    return items


def _read_category(name: str, cache: Path | None) -> list[Item]:
    folder = "bfcl_eval/data"
    entries = _lines(fetch_member(WHEEL, f"{folder}/BFCL_v4_{name}.json", cache=cache))
    answers: Sequence[Any] = [None] * len(entries)
    if name in ANSWERED_CATEGORIES:
        path = fetch_member(WHEEL, f"{folder}/possible_answer/BFCL_v4_{name}.json", cache=cache)
        answers = _lines(path)
        if [e["id"] for e in entries] != [a["id"] for a in answers]:
            raise BfclDataError(f"Questions and answers of {name} do not have the same ids.")
    expected = {**CATEGORIES, **LANGUAGE_CATEGORIES}[name]
    if len(entries) != expected:
        raise BfclDataError(
            f"{name} has {len(entries)} items; {expected} are in the pinned version."
        )
    return [
        make_item(entry, name, answer["ground_truth"] if answer else ())
        for entry, answer in zip(entries, answers, strict=True)
    ]


def _lines(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def make_item(
    entry: Mapping[str, Any], category: str, ground_truth: Sequence[Mapping] = ()
) -> Item:
    """An Item from a line of a BFCL file: 'id', 'question' (one turn), 'function'.

    Raises:
      BfclDataError: a question of several turns.
    """
    if len(entry["question"]) != 1:
        raise BfclDataError(f"{entry['id']} has {len(entry['question'])} turns; 1 is allowed.")
    described = entry["function"]
    if category in _LANGUAGES:
        described = [described_as_text(f, _LANGUAGES[category]) for f in described]
    return Item(
        id=entry["id"],
        category=category,
        messages=tuple(entry["question"][0]),
        functions=tuple(to_json_schema(f) for f in described),
        raw_functions=tuple(entry["function"]),
        ground_truth=tuple(ground_truth),
    )


def to_json_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """A BFCL function description with its 'parameters' as JSON Schema (draft 2020-12)."""
    return {
        "name": function["name"],
        "description": function.get("description", ""),
        "parameters": _schema(function.get("parameters", {"type": "dict"})),
    }


def _schema(node: Mapping[str, Any]) -> dict[str, Any]:
    kind = node.get("type", "")
    kind = _JSON_TYPES.get(kind, kind)
    schema: dict[str, Any] = {"type": kind} if kind in _JSON_SAME else {}
    schema |= {key: node[key] for key in _KEPT if key in node}
    if "properties" in node:
        schema["properties"] = {name: _schema(v) for name, v in node["properties"].items()}
    if isinstance(node.get("required"), list):
        schema["required"] = node["required"]
    if "items" in node:
        schema["items"] = _schema(node["items"])
    return schema
