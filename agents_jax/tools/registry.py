"""Tools that can be run here: definitions with the functions behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from agents_jax.tools.definitions import ToolDefinition, ToolDefinitionError


@dataclasses.dataclass(frozen=True)
class LocalTool:
    """A definition and its function, called with the arguments by name.

    function: importable by its name from a module, or a `functools.partial` of such a function
      with JSON values: it runs in another process, which imports it. Returns text, or a value that
      is written as JSON; what it raises becomes an observation.
    """

    definition: ToolDefinition
    function: Callable[..., Any]

    def __post_init__(self):
        if not isinstance(self.definition, ToolDefinition):
            raise ToolDefinitionError(
                f"a tool's definition is a {type(self.definition).__name__}; a ToolDefinition is "
                "needed."
            )
        if not callable(self.function):
            raise ToolDefinitionError(
                f"the function of {self.name!r} is a {type(self.function).__name__}, which cannot "
                "be called."
            )

    @property
    def name(self) -> str:
        return self.definition.name


class Registry(Mapping[str, LocalTool]):
    """Tools by name, in the order in which they were added.

    Raises:
      ToolDefinitionError: two tools of one name.
    """

    def __init__(self, tools: Iterable[LocalTool] = ()):
        self._tools: dict[str, LocalTool] = {}
        for tool in tools:
            self.add(tool)

    def add(self, tool: LocalTool) -> None:
        """Adds a tool.

        Raises:
          ToolDefinitionError: its name is taken, or it is no LocalTool.
        """
        if not isinstance(tool, LocalTool):
            raise ToolDefinitionError(f"{tool!r:.80} is not a LocalTool.")
        if tool.name in self._tools:
            raise ToolDefinitionError(
                f"a tool named {tool.name!r} is registered already; rename one of the two."
            )
        self._tools[tool.name] = tool

    def register(
        self, name: str, description: str, parameters: Mapping[str, Any]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that adds its function under an explicit definition and gives it back."""

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            self.add(LocalTool(ToolDefinition(name, description, parameters), function))
            return function

        return add

    @property
    def definitions(self) -> tuple[ToolDefinition, ...]:
        """Definitions of all tools, as a model is offered them."""
        return tuple(tool.definition for tool in self._tools.values())

    def __getitem__(self, name: str) -> LocalTool:
        return self._tools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)
