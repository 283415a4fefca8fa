"""Tool calls: their text forms, and the Berkeley function-calling benchmark as data and metric."""

from agents_jax.tools.calls import Call, CallParseError, parse_calls, render_calls, same_calls

__all__ = ["Call", "CallParseError", "parse_calls", "render_calls", "same_calls"]
