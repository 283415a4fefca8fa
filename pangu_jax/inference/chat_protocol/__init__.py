"""The OpenAI protocol's chats, tools and errors as plain data: what servers and agents share.

Needs no web framework.
"""

from pangu_jax.inference.chat_protocol.errors import ApiError, ServeError
from pangu_jax.inference.chat_protocol.messages import read_messages, render_messages
from pangu_jax.inference.chat_protocol.tokens import TokenTexts
from pangu_jax.inference.chat_protocol.tool_parsing import (
    ToolCall,
    ToolCallReader,
    parse_tool_calls,
)
from pangu_jax.inference.chat_protocol.tools import Tools, read_tools

__all__ = [
    "ApiError",
    "ServeError",
    "TokenTexts",
    "ToolCall",
    "ToolCallReader",
    "Tools",
    "parse_tool_calls",
    "read_messages",
    "read_tools",
    "render_messages",
]
