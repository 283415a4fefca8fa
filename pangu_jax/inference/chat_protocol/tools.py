"""Functions that a chat may call: as the request gives them, in the prompt, and as a grammar.

A chat template that reads `tools` gets them. For one that does not (SmolLM2's), a system text lists
them and says which form is expected, and tool messages of the history become plain text in the
Hermes convention.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pangu_jax.inference.chat_protocol.errors import ApiError
from pangu_jax.inference.chat_protocol.fields import Fields
from pangu_jax.inference.chat_protocol.tool_parsing import CLOSE, OPEN

MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")

SYSTEM_TEXT = """\
You may call functions to help with the user's request. The functions are described by JSON schemas:
<tools>
{tools}
</tools>
To call a function, answer with nothing but a JSON object of its name and arguments in these tags:
<tool_call>
{{"name": <function name>, "arguments": <object of arguments>}}
</tool_call>
Use one pair of tags for each call. If no function is needed, answer in plain text."""


@dataclasses.dataclass(frozen=True)
class Tools:
    """Functions on offer and how far the model must use them.

    definitions: as the protocol gives them, {"type": "function", "function": {...}}.
    choice: 'none', 'auto', 'required', or the one function that must be called as ('name', it).
    parallel: whether several calls at once are wanted; None where the request does not say.
    """

    definitions: tuple[Mapping[str, Any], ...] = ()
    choice: str | tuple[str, str] = "none"
    parallel: bool | None = None

    @property
    def active(self) -> bool:
        """Whether calls may come back."""
        return self.choice != "none"

    @property
    def forced(self) -> bool:
        """Whether a call must come back."""
        return self.choice not in ("none", "auto")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions."""
        return tuple(tool["function"]["name"] for tool in self.definitions)


def read_tools(fields: Fields) -> Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a chat request.

    Raises:
      ApiError: a tool that is not a function, a bad or repeated name, a choice that is not there.
    """
    definitions = []
    items = fields.array("tools") or []
    if len(items) > MOST_TOOLS:
        raise fields.fail("tools", f"{len(items)} tools; at most {MOST_TOOLS} are taken.")
    for index, item in enumerate(items):
        tool = Fields(item, f"tools[{index}]")
        tool.only(("type", "function"))
        tool.text("type", "function", choices=("function",))
        tool.required("function")
        function = tool.object("function")
        function.only(("name", "description", "parameters", "strict"))
        function.required("name")
        name = function.text("name")
        if not _NAME.fullmatch(name):
            raise function.wrong("name", "1 to 128 letters, digits, '_', '.' or '-'")
        function.text("description")
        function.object("parameters")
        function.boolean("strict")
        definitions.append({"type": "function", "function": dict(function.values)})
    names = [tool["function"]["name"] for tool in definitions]
    for name in names:
        if names.count(name) > 1:
            raise fields.fail("tools", f"two functions are named {name!r}; names must differ.")
    parallel = None
    if fields.get("parallel_tool_calls") is not None:
        parallel = fields.boolean("parallel_tool_calls")
    return Tools(tuple(definitions), _read_choice(fields, names), parallel)


def _read_choice(fields: Fields, names: Sequence[str]) -> str | tuple[str, str]:
    choice = fields.get("tool_choice")
    if choice is None:
        return "auto" if names else "none"
    if isinstance(choice, dict):
        named = fields.object("tool_choice")
        named.only(("type", "function"))
        named.text("type", "function", choices=("function",))
        named.required("function")
        function = named.object("function")
        function.only(("name",))
        function.required("name")
        name = function.text("name", choices=names) if names else None
        if name is None:
            raise function.fail("name", "the request offers no tools; add them to tools.")
        return ("name", name)
    allowed = ("none", "auto", "required")
    if choice not in allowed:
        raise fields.wrong("tool_choice", f"one of {', '.join(allowed)} or an object with a name")
    if not names:
        if choice == "required":
            raise fields.fail("tool_choice", "'required' needs at least one tool in tools.")
        return "none"
    return choice


def call_schema(tools: Tools) -> dict[str, Any]:
    """JSON schema of the forced calls: {"name": one of them, "arguments": by its parameters}.

    A list of calls only where the request says parallel_tool_calls: true; small models seldom find
    the end of a list.
    """
    if isinstance(tools.choice, tuple):
        offered = [
            tool for tool in tools.definitions if tool["function"]["name"] == tools.choice[1]
        ]
    else:
        offered = list(tools.definitions)
    shared: dict[str, Any] = {}
    calls = [_one_call(tool["function"], shared) for tool in offered]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if tools.parallel and tools.choice == "required":
        schema = {"type": "array", "items": schema, "minItems": 1}
    return {**schema, "$defs": shared} if shared else schema


def either_schema(schema: Mapping[str, Any], tools: Tools) -> dict[str, Any]:
    """JSON schema of a structured answer or one call, for `response_format` beside tools."""
    shared: dict[str, Any] = {}
    branches = [embed_schema("answer", schema, shared)]
    branches += [_one_call(tool["function"], shared) for tool in tools.definitions]
    return {"anyOf": branches, **({"$defs": shared} if shared else {})}


def _one_call(function: Mapping[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object"}
    if "type" not in parameters and "properties" in parameters:
        parameters = {"type": "object", **parameters}
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": embed_schema(f"call-{function['name']}", parameters, shared),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def embed_schema(key: str, schema: Mapping[str, Any], shared: dict[str, Any]) -> Mapping[str, Any]:
    """The schema for use inside another one, whose `$defs` are `shared`.

    References are relative to the root of a document, so a schema that has any moves to
    `$defs` whole, and its references with it.
    """
    if not _has_reference(schema):
        return schema
    shared[key] = _rebased(schema, f"#/$defs/{key}")
    return {"$ref": f"#/$defs/{key}"}


def _has_reference(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("$ref"), str) or any(map(_has_reference, value.values()))
    return isinstance(value, list) and any(map(_has_reference, value))


def _rebased(value: Any, root: str) -> Any:
    if isinstance(value, Mapping):
        return {
            key: root + item[1:]
            if key == "$ref" and isinstance(item, str) and item.startswith("#")
            else _rebased(item, root)
            for key, item in value.items()
        }
    return [_rebased(item, root) for item in value] if isinstance(value, list) else value


def system_text(tools: Tools) -> str:
    """What tells a model without a convention of its own about the functions."""
    lines = (json.dumps(tool["function"], ensure_ascii=False) for tool in tools.definitions)
    return SYSTEM_TEXT.format(tools="\n".join(lines))


def with_system_text(messages: Sequence[Mapping[str, Any]], tools: Tools) -> list[dict[str, Any]]:
    """The messages with the functions described in the first one, a system message."""
    rest = [dict(message) for message in messages]
    text = system_text(tools)
    if rest and rest[0]["role"] == "system":
        first = rest.pop(0)
        text = f"{text}\n\n{first['content']}"
    return [{"role": "system", "content": text}, *rest]


def history_as_text(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls and their results as plain text, for templates that read only role and content.

    A result becomes a message of the user in <tool_response> tags; results that follow one another
    share a message, since templates often insist on turns.
    """
    plain: list[dict[str, Any]] = []
    joins = False
    for message in messages:
        message = dict(message)
        is_result = message["role"] == "tool"
        if is_result:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if joins:
                plain[-1]["content"] += f"\n{text}"
            else:
                plain.append({"role": "user", "content": text})
        else:
            calls = message.pop("tool_calls", None) or []
            texts = [message["content"]] if message["content"] else []
            for call in calls:
                written = json.dumps(call["function"], ensure_ascii=False)
                texts.append(f"{OPEN}\n{written}\n{CLOSE}")
            plain.append({**message, "content": "\n".join(texts)})
        joins = is_result
    return plain


@functools.lru_cache(maxsize=8)
def reads_tools(chat_template: str) -> bool:
    """Whether a chat template takes `tools` from outside.

    Raises:
      ApiError: a template that is broken.
    """
    import jinja2
    from jinja2 import meta

    from pangu_jax.weights.chat import _environment

    try:
        return "tools" in meta.find_undeclared_variables(_environment().parse(chat_template))
    except jinja2.TemplateError as error:
        raise ApiError(f"The model's chat template is broken: {error}") from error
