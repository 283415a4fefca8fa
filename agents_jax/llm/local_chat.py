"""Chats for the local engine: messages and tools as one text, and tool calls out of a text.

The forms are those of our HTTP server, so that a model says the same here and behind it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from agents_jax.llm.errors import InvalidRequest
from agents_jax.llm.requests import GenerateRequest
from pangu_jax.inference.chat_protocol.errors import ApiError
from pangu_jax.inference.chat_protocol.fields import Fields
from pangu_jax.inference.chat_protocol.messages import read_messages, render_messages
from pangu_jax.inference.chat_protocol.tokens import TokenTexts
from pangu_jax.inference.chat_protocol.tool_parsing import ToolCall, parse_tool_calls
from pangu_jax.inference.chat_protocol.tools import Tools, call_schema, either_schema, read_tools

if TYPE_CHECKING:
    from pangu_jax.weights.tokenizer_import import LoadedTokenizer

__all__ = ["Chat", "TokenTexts", "read_chat"]


@dataclasses.dataclass(frozen=True)
class Chat:
    """A rendered chat, its tools, and the JSON schema that the answer must match (None: any)."""

    text: str
    tools: Tools
    schema: dict[str, Any] | None

    def parse(self, text: str) -> tuple[str | None, list[ToolCall]]:
        """Content and tool calls of an answer."""
        return parse_tool_calls(text, self.tools.names, parallel=self.tools.parallel is not False)


def read_chat(loaded: LoadedTokenizer, request: Any) -> Chat:
    """The request's messages as the text that the model was tuned on.

    Raises:
      InvalidRequest: messages, tools or a choice of them that the template or protocol refuses.
    """
    fields = Fields(
        {
            "messages": [dict(message) for message in request.messages],
            "tools": [dict(tool) for tool in getattr(request, "tools", ())] or None,
            "tool_choice": getattr(request, "tool_choice", None),
        }
    )
    try:
        tools = read_tools(fields)
        text, _ = render_messages(loaded, read_messages(fields), tools)
    except ApiError as error:
        raise InvalidRequest(str(error)) from error
    schema = request.response_schema if isinstance(request, GenerateRequest) else None
    if tools.forced:
        if schema is not None or request.regex is not None:
            raise InvalidRequest(
                "response_schema and regex do not go with a tool_choice that forces a call; leave "
                "one of them out."
            )
        schema = call_schema(tools)
    elif tools.active and schema is not None:
        schema = either_schema(schema, tools)
    return Chat(text, tools, schema)
