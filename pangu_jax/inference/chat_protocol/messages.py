"""Messages of a chat: checked, and rendered by the model's own template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pangu_jax.inference.chat_protocol.errors import ApiError
from pangu_jax.inference.chat_protocol.fields import Fields, kind_of
from pangu_jax.inference.chat_protocol.tools import (
    Tools,
    history_as_text,
    reads_tools,
    with_system_text,
)
from pangu_jax.weights.chat import render_chat
from pangu_jax.weights.errors import WeightsError
from pangu_jax.weights.tokenizer_import import LoadedTokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
_KNOWN = ("role", "content", "name", "tool_calls", "tool_call_id")
# Replies are sent back as history, with whatever fields the client library adds.
_IGNORED = ("refusal", "annotations", "reasoning_content")
_REFUSED = {
    "function_call": "the older form of calls is not read; use tool_calls.",
    "audio": "this model reads text only.",
}


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages as templates expect them: content is text, arguments of calls are objects.

    Raises:
      ApiError: naming the message and field that is wrong, or content other than text.
    """
    fields.required("messages")
    items = fields.array("messages")
    if not items:
        raise fields.wrong("messages", "an array of at least one message")
    return [_read_message(Fields(item, f"messages[{i}]")) for i, item in enumerate(items)]


def _read_message(fields: Fields) -> dict[str, Any]:
    fields.only(_KNOWN, ignored=_IGNORED, refused=_REFUSED)
    fields.required("role")
    role = fields.text("role", choices=ROLES)
    calls = _read_calls(fields) if role == "assistant" else []
    if fields.get("content") is None and not (role == "assistant" and calls):
        fields.required("content")
    message = {
        "role": "system" if role == "developer" else role,
        "content": _read_content(fields),
    }
    if fields.text("name") is not None:
        message["name"] = fields.text("name")
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        fields.required("tool_call_id")
        message["tool_call_id"] = fields.text("tool_call_id")
    return message


def _read_content(fields: Fields) -> str:
    content = fields.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise fields.wrong("content", "a string or an array of text parts")
    texts = []
    for index, item in enumerate(content):
        part = Fields(item, f"{fields.where('content')}[{index}]")
        part.required("type")
        if part.text("type") != "text":
            raise part.fail("type", f"{part.text('type')!r}: this model reads text only.")
        part.only(("type", "text"))
        part.required("text")
        texts.append(part.text("text"))
    return "".join(texts)


def _read_calls(fields: Fields) -> list[dict[str, Any]]:
    calls = []
    for index, item in enumerate(fields.array("tool_calls") or []):
        call = Fields(item, f"{fields.where('tool_calls')}[{index}]")
        call.only(("id", "type", "function", "index"))
        call.text("type", "function", choices=("function",))
        call.required("function")
        function = call.object("function")
        function.only(("name", "arguments"))
        function.required("name")
        function.required("arguments")
        try:
            arguments = json.loads(function.text("arguments"))
        except (ValueError, RecursionError) as error:
            raise function.fail("arguments", f"not JSON text ({error}).") from error
        if not isinstance(arguments, dict):
            raise function.fail(
                "arguments", f"must be the text of a JSON object, not of {kind_of(arguments)}."
            )
        calls.append(
            {
                "id": call.text("id", ""),
                "type": "function",
                "function": {"name": function.text("name"), "arguments": arguments},
            }
        )
    return calls


def render_messages(
    loaded: LoadedTokenizer, messages: list[dict[str, Any]], tools: Tools
) -> tuple[str, list[int]]:
    """The prompt's text and its token ids.

    Raises:
      ApiError: a template that refuses these messages, or a text that is not Unicode.
    """
    template = loaded.special.chat_template
    if template is None:
        raise ApiError("This model has no chat template; use /v1/completions with a plain prompt.")
    offered: list[Mapping[str, Any]] | None = None
    if tools.active:
        if reads_tools(template):
            offered = list(tools.definitions)
        else:
            messages = with_system_text(messages, tools)
    if "tool_calls" not in template:
        messages = history_as_text(messages)
    try:
        text = render_chat(loaded, messages, tools=offered)
    except WeightsError as error:
        raise ApiError(str(error), param="messages") from error
    return text, encode(loaded, text, "messages", add_special_tokens=False)


def encode(
    loaded: LoadedTokenizer, text: str, param: str, *, add_special_tokens: bool
) -> list[int]:
    """Token ids of a text.

    Raises:
      ApiError: a text with half a surrogate pair, which JSON can write and Unicode cannot.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ApiError(
            f"{param}: character {error.start} is half a surrogate pair, which is not text.",
            param=param,
        ) from error
    return loaded.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
