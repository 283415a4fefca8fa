"""Regular expressions of the texts that call given tools, for constrained decoding.

A pattern holds exactly the texts in which `render_calls` writes calls of these tools with arguments
in the order of their schemas: names, required arguments, types, enums and nesting are right by
construction. Ranges, lengths, formats and other keywords are left to `check_arguments`.

The patterns use what Python's `re` and Rust's `regex` have in common, so that they serve
`GenerateRequest.regex` with the local engine and with servers that take one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from agents_jax.tools.calls import Call, Form, render_calls
from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.schemas import resolve_reference

MAX_CHARS = 400_000
"""Longest pattern."""
_FREE_DEPTH = 2  # nesting of values whose schema says nothing
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
_INTEGER = "-?(?:0|[1-9][0-9]{0,17})"  # fits 64 bits
_NUMBER = _INTEGER + r"(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?"  # never an infinity
_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\nrt])*"'  # one spelling for each character
_BRACED = r"\{{{}\}}"  # for str.format
_MARKS = {"python": ("None", "True", "False"), "json": ("null", "true", "false")}


class CallPatternError(ValueError):
    """No pattern can be made of these tools; the message says why and what to change."""


def call_pattern(
    tools: Sequence[ToolDefinition], form: Form = "python", *, max_calls: int = 8,
    refusals: Sequence[str] = (),
) -> str:  # fmt: skip
    """The pattern of a text that calls 1 to max_calls of the tools.

    Args:
      tools: at least one, or a refusal. Schemas may combine ('anyOf', 'oneOf'), nest and refer;
        where they say more than a pattern can ('allOf', 'not', 'patternProperties', ...), any value
        is let through. Objects hold the properties that they declare, or, where they declare none,
        any, also one twice.
      form: of the calls, see `render_calls`.
      refusals: texts that may stand in place of calls.

    Raises:
      CallPatternError: nothing to allow, a name that the Python form cannot write, a pattern of
        more than MAX_CHARS characters.
      ValueError: an unknown form, max_calls below 1.
    """
    if form not in ("python", "json", "hermes"):
        raise ValueError(f"form {form!r} is unknown; allowed: python, json, hermes.")
    if max_calls < 1:
        raise ValueError(f"max_calls={max_calls} must be at least 1.")
    if not tools and not refusals:
        raise CallPatternError("there are neither tools nor refusals, so no text is allowed.")
    options = [_literal(text) for text in refusals]
    if tools:
        calls = _any_of([_call(tool, form) for tool in tools])
        if form == "hermes":
            calls = f"<tool_call>\n{calls}\n</tool_call>"
            options.append(_repeated(calls, 1, max_calls, "\n"))
        else:
            options.append(r"\[" + _repeated(calls, 1, max_calls) + r"\]")
    pattern = _any_of(options)
    if len(pattern) > MAX_CHARS:
        raise CallPatternError(
            f"the pattern of {len(tools)} tools has {len(pattern):,} characters, more than "
            f"{MAX_CHARS:,}; offer fewer tools or simplify their schemas."
        )
    return pattern


def _call(tool: ToolDefinition, form: Form) -> str:
    values = _Values(tool.parameters, "python" if form == "python" else "json")
    if form != "python":
        name = _literal(json.dumps(tool.name))
        body = values.json_object(tool.parameters)
        return _BRACED.format(f'"name": {name}, "arguments": {body}')
    try:
        render_calls([Call(tool.name, dict.fromkeys(tool.properties))])
    except ValueError as error:
        raise CallPatternError(str(error)) from None
    fields = values.declared(tool.parameters, lambda name: _literal(f"{name}="))
    return _literal(f"{tool.name}(") + fields + _literal(")")


class _Values:
    """Patterns of the values below one tool's schema, in the literals of Python or JSON."""

    def __init__(self, root: Mapping[str, Any], literals: Literal["python", "json"]):
        self._root, self._literals = root, literals
        null, true, false = _MARKS[literals]
        self._by_type: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "string": lambda schema: _STRING,
            "integer": lambda schema: _INTEGER,
            "number": lambda schema: _NUMBER,
            "boolean": lambda schema: _any_of([true, false]),
            "null": lambda schema: null,
            "array": self._array,
            "object": self._object,
        }

    def of(self, schema: Any) -> str:
        """The pattern of a schema's values."""
        if not isinstance(schema, Mapping):  # true or false
            return self._free(_FREE_DEPTH)
        if "$ref" in schema:
            return self.of(resolve_reference(schema["$ref"], self._root))
        if "const" in schema:
            return self._value(schema["const"])
        if schema.get("enum"):
            return _any_of([self._value(value) for value in schema["enum"]])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return _any_of([self.of(option) for option in schema[key]])
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not kinds:
            return self._free(_FREE_DEPTH)
        return _any_of([self._by_type[kind](schema) for kind in kinds])

    def declared(self, schema: Mapping[str, Any], key: Callable[[str], str]) -> str:
        """The declared properties, each behind its key, in their order; those that are not required
        may be left out.
        """
        required = frozenset(schema.get("required", ()))
        fields = [
            (key(name) + self.of(inner), name in required)
            for name, inner in schema.get("properties", {}).items()
        ]
        # An alternative for each property that can come first; the others stand behind commas.
        starts, rest = [], ""
        for field, needed in reversed(fields):
            if needed:
                starts = []
            starts.append(field + rest)
            rest = f", {field}{rest}" if needed else f"(?:, {field})?{rest}"
        text = _any_of(starts[::-1]) if starts else ""
        return text if not starts or required & set(schema["properties"]) else f"(?:{text})?"

    def json_object(self, schema: Mapping[str, Any]) -> str:
        """An object of the declared properties."""
        return _BRACED.format(self.declared(schema, lambda name: _literal(json.dumps(name)) + ": "))

    def _object(self, schema: Mapping[str, Any]) -> str:
        if schema.get("properties"):
            return self.json_object(schema)
        inner = schema.get("additionalProperties", True)
        if inner is False:
            return _BRACED.format("")
        value = self.of(inner) if isinstance(inner, Mapping) else self._free(_FREE_DEPTH - 1)
        return _BRACED.format(_repeated(f"{_STRING}: {value}", 0, None))

    def _array(self, schema: Mapping[str, Any]) -> str:
        items = schema.get("items", True)
        item = self.of(items) if isinstance(items, Mapping) else self._free(_FREE_DEPTH - 1)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        return r"\[" + _repeated(item, int(least), most if most is None else int(most)) + r"\]"

    def _free(self, depth: int) -> str:
        """Any value, lists and objects nested so deep."""
        null, true, false = _MARKS[self._literals]
        options = [_STRING, _NUMBER, true, false, null]
        if depth > 0:
            inner = self._free(depth - 1)
            options.append(r"\[" + _repeated(inner, 0, None) + r"\]")
            options.append(_BRACED.format(_repeated(f"{_STRING}: {inner}", 0, None)))
        return _any_of(options)

    def _value(self, value: Any) -> str:
        if self._literals == "json":
            return _literal(json.dumps(value, ensure_ascii=False))
        text = render_calls([Call("f", {"x": value})])
        return _literal(text[len("[f(x=") : -len(")]")])


def _repeated(item: str, least: int, most: int | None, separator: str = ", ") -> str:
    """So many items with a separator between them."""
    if most is not None and most < max(least, 1):
        return ""  # an empty list, as far as a text can say it
    if most == 1:
        return item if least else f"(?:{item})?"
    more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    more = "*" if more == "{0,}" else more
    text = f"{item}(?:{separator}{item}){more}"
    return text if least else f"(?:{text})?"


def _any_of(options: Sequence[str]) -> str:
    options = list(dict.fromkeys(options))
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"


def _literal(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", text)
