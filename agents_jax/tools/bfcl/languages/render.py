"""Calls written as Java or JavaScript, e.g. gold answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agents_jax.tools.bfcl.languages.parsing import Language
from agents_jax.tools.calls import Call

_ELEMENT_TYPES = {"integer": "int", "any": "Object", "char": "char", "boolean": "boolean"}
# Types whose values may be given by name: a text among them is a variable, not a literal.
_BY_NAME = ("any", "Array", "ArrayList", "HashMap", "array", "dict")


def render_language_calls(
    calls: Sequence[Call], functions: Sequence[Mapping[str, Any]], language: Language
) -> str:
    """The text of the calls, `f(a=1, b="x")` each.

    Args:
      calls: with values as `gold_calls` gives them (bool, int, float, str, list, dict, None).
      functions: descriptions in BFCL's form; they say whether a text is a string or a name, and
        which kind of number and of array is meant. A value without one is written by its own type.
    """
    schemas = {f["name"]: f["parameters"]["properties"] for f in functions}
    write = _java if language == "java" else _javascript
    return ", ".join(
        f"{call.name}({', '.join(_arguments(call, schemas.get(call.name, {}), write))})"
        for call in calls
    )


def _arguments(call: Call, schemas: Mapping[str, Any], write) -> list[str]:
    return [
        f"{name}={write(value, schemas.get(name, {}))}" for name, value in call.arguments.items()
    ]


def _java(value: Any, schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "")
    if isinstance(value, str):
        if kind == "char":
            return f"'{value}'"
        return value if _is_name(value, kind) else _string(value, '"')
    if isinstance(value, (list, tuple)):
        items = schema.get("items", {})
        elements = ", ".join(_java(v, items) for v in value)
        if kind == "Array":
            inner = items.get("type", "any")
            return f"new {_ELEMENT_TYPES.get(inner, inner)}[]{{{elements}}}"
        return f"new ArrayList<>({f'Arrays.asList({elements})' if value else ''})"
    if isinstance(value, Mapping):
        puts = " ".join(f"put({_quoted(k)}, {_java(v, {})});" for k, v in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    text = _plain(value)
    if isinstance(value, bool) or value is None:
        return text
    return text + {"long": "L", "float": "f"}.get(kind, "")


def _javascript(value: Any, schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "")
    if isinstance(value, str):
        return value if _is_name(value, kind) else _string(value, "'" if '"' in value else '"')
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_javascript(v, schema.get("items", {})) for v in value) + "]"
    if isinstance(value, Mapping):
        entries = ", ".join(f"{_quoted(k)}: {_javascript(v, {})}" for k, v in value.items())
        return f"{{{entries}}}"
    return _plain(value) + ("n" if kind == "Bigint" and type(value) is int else "")


def _is_name(value: str, kind: str) -> bool:
    # What holds quotes where anything is allowed is source itself, such as `new URL("x")`.
    return kind in _BY_NAME and (value.isidentifier() or (kind == "any" and '"' in value))


def _string(value: str, quote: str) -> str:
    # Only what would end the literal is escaped: BFCL compares strings as they are written.
    return quote + value.replace(quote, "\\" + quote).replace("\n", "\\n") + quote


def _quoted(key: Any) -> str:
    return _string(str(key), '"')


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} cannot be written as a literal; finite numbers are allowed.")
    return repr(value)
