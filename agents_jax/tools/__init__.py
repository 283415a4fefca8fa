"""Tools: definitions, calls in models' texts, execution, and the function-calling benchmarks."""

from agents_jax.tools.calls import Call, CallParseError, parse_calls, render_calls, same_calls
from agents_jax.tools.definitions import (
    ArgumentError,
    ToolDefinition,
    ToolDefinitionError,
    check_arguments,
    read_tools,
)
from agents_jax.tools.registry import LocalTool, Registry

__all__ = [
    "ArgumentError",
    "Call",
    "CallParseError",
    "LocalTool",
    "Registry",
    "ToolDefinition",
    "ToolDefinitionError",
    "check_arguments",
    "parse_calls",
    "read_tools",
    "render_calls",
    "same_calls",
]
