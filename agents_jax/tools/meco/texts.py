"""Features of a question's text that need no model: overlap, length, TF-IDF."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents_jax.tools.meco.examples import Example

_WORD = re.compile(r"[A-Za-z]+|\d+")
_COMMON = frozenset(
    "a an and are as at be by can do for from get give how i in is it me my of on or please that "
    "the this to was what when where which who will with would you your".split()
)


def words(text: str) -> set[str]:
    """Distinct words in lower case, names split at '_', '.' and capitals, plural s dropped, without
    the commonest words.
    """
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    found = {word.lower() for word in _WORD.findall(text)}
    found = {w[:-1] if len(w) > 3 and w.endswith("s") else w for w in found}
    return found - _COMMON


def tool_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Names and descriptions of functions and parameters."""
    parts = []
    for tool in tools:
        parts += [str(tool.get("name", "")), str(tool.get("description", ""))]
        for name, schema in (tool.get("parameters", {}).get("properties") or {}).items():
            parts += [name, str(schema.get("description", ""))]
    return " ".join(parts)


def overlap(query: str, tools: Sequence[Mapping[str, Any]]) -> float:
    """Share of the query's words that occur in the tools' texts; 0 without either."""
    asked, offered = words(query), words(tool_text(tools))
    return len(asked & offered) / len(asked) if asked and offered else 0.0


def lengths(examples: Sequence[Example]) -> np.ndarray:
    """Logarithms of the characters of query and tools, float64 [num_examples, 2]."""
    return np.log1p(
        [[len(e.query), len(tool_text(e.tools))] for e in examples]
    )  # fmt: skip


def overlaps(examples: Sequence[Example]) -> np.ndarray:
    """`overlap` of each example, float64 [num_examples, 1]."""
    return np.array([[overlap(e.query, e.tools)] for e in examples])


def query_texts(examples: Sequence[Example]) -> list[str]:
    """Queries alone."""
    return [example.query for example in examples]


def query_and_tool_texts(examples: Sequence[Example]) -> list[str]:
    """Queries with the tools' texts; words of both get a mark that tells where they stand, and a
    third that says they stand in both.
    """
    out = []
    for e in examples:
        asked, offered = words(e.query), words(tool_text(e.tools))
        out.append(
            " ".join(
                [f"q{w}" for w in sorted(asked)]
                + [f"t{w}" for w in sorted(offered)]
                + [f"b{w}" for w in sorted(asked & offered)]
                + ["both"] * len(asked & offered)
            )
        )
    return out
