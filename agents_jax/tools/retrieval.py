"""A few candidates out of many tools, so that they fit a prompt (ours)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.lexical import WordIndex

_DEPTH = 4  # of parameters within parameters that are indexed


class ToolIndex:
    """Tools, found by words of their names and descriptions and of those of their parameters.

    Args:
      definitions: in an order that settles ties.
      parameter_descriptions: index them too, beside the parameters' names.
    """

    def __init__(
        self, definitions: Sequence[ToolDefinition], *, parameter_descriptions: bool = True
    ):
        self.definitions = tuple(definitions)
        self._words = WordIndex([index_text(d, parameter_descriptions) for d in self.definitions])

    def top(self, query: str, k: int) -> list[ToolDefinition]:
        """The k tools (or all, where there are fewer) that share most with the query, best first.

        Raises:
          ValueError: k is not a whole number above 0.
        """
        return [definition for definition, _ in self.ranked(query, k)]

    def ranked(self, query: str, k: int) -> list[tuple[ToolDefinition, float]]:
        """As `top`, with BM25+ scores; 0 where no word is shared."""
        return [(self.definitions[index], score) for index, score in self._words.top(query, k)]


def index_text(definition: ToolDefinition, parameter_descriptions: bool = True) -> str:
    """The text under which a tool is indexed; its name counts twice."""
    texts = _parameters(definition.parameters, parameter_descriptions, _DEPTH)
    return " ".join((definition.name, definition.name, definition.description, *texts))


def _parameters(schema: Any, descriptions: bool, depth: int) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth == 0:
        return
    for name, child in (schema.get("properties") or {}).items():
        yield name
        if descriptions and isinstance(child, Mapping):
            yield str(child.get("description", ""))
        yield from _parameters(child, descriptions, depth - 1)
    yield from _parameters(schema.get("items"), descriptions, depth - 1)
