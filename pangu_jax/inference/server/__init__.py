"""An OpenAI-compatible HTTP server over an engine."""

from pangu_jax.inference.chat_protocol.errors import ApiError, ServeError
from pangu_jax.inference.chat_protocol.tool_parsing import (
    ToolCall,
    ToolCallReader,
    parse_tool_calls,
)
from pangu_jax.inference.server.app import Server
from pangu_jax.inference.server.limits import Limits, api_key_from_environment
from pangu_jax.inference.server.run import Stop, serve, serve_async

__all__ = [
    "ApiError",
    "Limits",
    "ServeError",
    "Server",
    "Stop",
    "ToolCall",
    "ToolCallReader",
    "api_key_from_environment",
    "parse_tool_calls",
    "serve",
    "serve_async",
]
