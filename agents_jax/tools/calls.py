"""Tool calls as data, and the texts in which models write them.

Two forms: Python calls, `[f(a=1, b="x"), g()]`, and JSON, a list of
`{"name": ..., "arguments": {...}}`, with the marks of the model's family around it or without
(`call_forms.py`). A model's text is never executed: it is parsed to a syntax tree, or as JSON, and
read from there.
"""

from __future__ import annotations

import dataclasses
import json
import keyword
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from agents_jax.tools.call_forms import read_any, read_strict
from agents_jax.tools.literals import MAX_INT_BITS, CallParseError, read_python

MAX_CHARS = 32_768
"""Longest text that is parsed, in characters."""

Form = Literal["python", "json", "hermes"]
Dialect = Literal["any", "strict", "bfcl"]
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call: the function's name (dots allowed) and its arguments by name.

    Values are None, bool, int, float, str, and lists, tuples and dicts of them.
    """

    name: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def parse_calls(text: str, *, dialect: Dialect = "any") -> list[Call]:
    """The calls that a text holds; `[]` is a text that says 'no call'.

    Args:
      text: a model's answer, up to MAX_CHARS characters.
      dialect: 'any' takes every form: Python calls, JSON, and the marks of Hermes, Qwen, Mistral
        and Llama 3, in code fences or not, keyword arguments only, each once; bare words are text,
        arithmetic on numbers is done. 'strict' takes the same forms where the text is nothing else,
        see `call_forms.read_strict`. 'bfcl' decodes as BFCL's default does: Python calls only,
        missing outer brackets added, positional arguments dropped, the last of a repeated argument
        kept.

    Raises:
      CallParseError: the text is not a list of calls; the message says why. Nothing else is raised,
        whatever the text.
    """
    if dialect not in ("any", "bfcl", "strict"):
        raise ValueError(f"dialect {dialect!r} is unknown; allowed: any, bfcl, strict.")
    if len(text) > MAX_CHARS:
        raise CallParseError(f"the text has {len(text)} characters, more than {MAX_CHARS}")
    if dialect == "bfcl":
        text = text.strip("`\n ")
        text = text if text.startswith("[") else "[" + text
        text = text if text.endswith("]") else text + "]"
        pairs = read_python(text.strip().strip("'"), strict=False)
    else:
        pairs = read_any(text) if dialect == "any" else read_strict(text)
    return [Call(*pair) for pair in pairs]


def render_calls(calls: Sequence[Call], form: Form = "python") -> str:
    """The text of the calls; `parse_calls` gives them back (tuples become lists in JSON).

    Raises:
      ValueError: a name that is no identifier (Python form), a value that is no literal, a float
        that is not finite, an integer of more than 1,024 bits, an unknown form.
    """
    if form == "python":
        return "[" + ", ".join(_python_call(call) for call in calls) + "]"
    if form not in ("json", "hermes"):
        raise ValueError(f"form {form!r} is unknown; allowed: python, json, hermes.")
    for call in calls:
        _python(call.arguments)  # the same values are allowed in both forms
    objects = [
        json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False, allow_nan=False)
        for c in calls
    ]
    if form == "json":
        return "[" + ", ".join(objects) + "]"
    return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in objects)


def same_calls(one: Sequence[Call], other: Sequence[Call]) -> bool:
    """Whether both hold equal calls, each as often, in any order of calls and arguments.

    Types count: 1, 1.0 and True differ.
    """
    return sorted(_key(call) for call in one) == sorted(_key(call) for call in other)


def _key(call: Call) -> str:
    return repr((call.name, _sorted(call.arguments)))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {"": sorted(((repr(k), _sorted(v)) for k, v in value.items()), key=repr)}
    if isinstance(value, (list, tuple)):
        return type(value)(_sorted(v) for v in value)
    return value


def _python_call(call: Call) -> str:
    for name in (*call.name.split("."), *call.arguments):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(
                f"{name!r} in the call of {call.name!r} is not a Python identifier; "
                "render these calls with form='json'."
            )
    arguments = ", ".join(f"{name}={_python(value)}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def _python(value: Any) -> str:
    """A literal as Python source, strings in double quotes."""
    if isinstance(value, str):
        # A JSON string is a Python literal of the same value; lone surrogates cannot be source.
        quoted = json.dumps(value, ensure_ascii=False)
        return _SURROGATE.sub(lambda m: f"\\u{ord(m.group()):04x}", quoted)
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int) and value.bit_length() <= MAX_INT_BITS:
        return repr(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(_python(v) for v in value) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(_python(v) + ", " for v in value).removesuffix(" ") + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_python(k)}: {_python(v)}" for k, v in value.items()) + "}"
    raise ValueError(
        f"a value of type {type(value).__name__} cannot be written as an argument; allowed: None, "
        f"bool, int of up to {MAX_INT_BITS} bits, finite float, str, list, tuple, dict."
    )
