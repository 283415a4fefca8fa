"""Values of JavaScript texts, see `values`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from agents_jax.tools.bfcl.languages.numbers import whole_number

JAVASCRIPT_TYPES: dict[str, type] = {
    "integer": int,
    "Bigint": int,
    "float": float,
    "Boolean": bool,
    "String": str,
    "any": str,
    "array": list,
    "dict": dict,
}
_INTEGER = re.compile(r"-?\d+$")
_BIGINT = re.compile(r"-?\d+n$")
_FLOAT = re.compile(r"-?\d+(\.\d+)?$")
_ARRAY = re.compile(r"\[(.*?)\]|new\s+Array\((.*?)\)")
_ROWS = re.compile(r"(\[|new\s+Array\()\s*\[")
_ROW = re.compile(r"\[(.*?)\]")
_OBJECT = re.compile(r"\{(.*?)\}")


def javascript_value(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of a text of the type `kind`, with elements of the type `inner`."""
    if kind == "String":
        return text[1:-1] if _quoted(text) else text
    if kind == "integer":
        return whole_number(text, text) if _INTEGER.match(text) else text
    if kind == "Bigint":
        return whole_number(text.rstrip("\n")[:-1], text) if _BIGINT.match(text) else text
    if kind == "float":
        return float(text) if _FLOAT.match(text) else text
    if kind == "Boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "array":
        return _array(text.strip(), inner)
    if kind == "dict":
        return _object(text.strip())
    return text  # any


def _array(text: str, inner: str | None) -> Any:
    """`[a, b]`, `new Array(a, b)`, or the same of arrays, whose elements' types are guessed."""
    end = _rows_end(text)
    if end is not None:
        rows = [row.strip() for row in _ROW.findall(text, 0, end)]
        rows[0] = rows[0].removeprefix("[")
        return [[_guessed(part) for part in row.split(",")] for row in rows]
    found = _ARRAY.match(text)
    if not found:
        return text
    parts = (found.group(1) if found.group(1) is not None else found.group(2)).strip()
    elements = [part.strip() for part in parts.split(",")] if parts else []
    if inner is None:
        return [_guessed(e) for e in elements]
    return [javascript_value(e, inner, "String" if e[:1] in ("'", '"') else None) for e in elements]


def _rows_end(text: str) -> int | None:
    """Where an array of arrays that begins the text ends; None where there is none.

    A row is `[`, anything up to some `]` on the same line; after the last one the array closes,
    after the others stand a comma and the next row. Of all ways to read the text so, the one whose
    rows end earliest counts. Found from the right, once over the text.
    """
    start = _ROWS.match(text)
    if not start:
        return None
    close = "]" if start.group(1) == "[" else ")"
    length = len(text)
    after = [length] * (length + 1)  # the first place from here on that is not blank
    ends: list[int | None] = [None] * (length + 1)  # of the array, whose row is open here
    for at in range(length - 1, -1, -1):
        char = text[at]
        after[at] = after[at + 1] if char.isspace() else at
        if char == "\n":
            continue  # a row that is open here does not end
        ends[at] = ends[at + 1]
        if char != "]":
            continue
        following = after[at + 1]
        if text[following : following + 1] == close:
            ends[at] = following + 1
        elif text[following : following + 1] == ",":
            opened = after[following + 1]
            if text[opened : opened + 1] == "[" and ends[opened + 1] is not None:
                ends[at] = ends[opened + 1]
    return ends[start.end()]


def _object(text: str) -> Any:
    """`{key: value, ...}` up to the first closing brace."""
    if text == "{}":
        return {}
    found = _OBJECT.match(text)
    if not found:
        return text
    entries = {}
    for key, value in _entries(found.group(1)):
        value = value.strip()
        if value.startswith("[") and value.endswith("]"):
            entries[key] = _array(value, None)
        elif value.startswith("{") and value.endswith("}"):
            entries[key] = _object(value)
        else:
            entries[key] = _guessed(value.strip("'\""))
    return entries


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(key, value) of each `key: value`. A comma ends a value only where another key follows it,
    that is, a colon before the next comma."""
    position = 0
    while position < len(text):
        colon = text.find(":", position)
        if colon < 0:
            return
        key = text[position:colon]
        value = colon + 1
        while value < len(text) and text[value].isspace():
            value += 1
        position = colon + 1
        if not key:
            continue
        end, following = _value_end(text, value)
        yield key.strip().strip("'\""), text[value:end]
        position = following


def _value_end(text: str, start: int) -> tuple[int, int]:
    """Where a value ends, and where the next key begins."""
    comma = start - 1
    while (comma := text.find(",", comma + 1)) >= 0:
        stop = text.find(",", comma + 1)
        last_colon = text.rfind(":", comma + 2, stop if stop >= 0 else len(text))
        if last_colon >= 0:
            following = comma + 1
            while following < last_colon - 1 and text[following].isspace():
                following += 1
            return comma, following
    return len(text), len(text)


def _guessed(text: str) -> Any:
    """The value of a text whose type is not said."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if _quoted(text):
        return text[1:-1]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _quoted(text: str) -> bool:
    return text != "" and text[0] == text[-1] and text[0] in "\"'"
