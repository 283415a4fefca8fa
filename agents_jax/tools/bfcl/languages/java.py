"""Values of Java texts, see `values`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from agents_jax.tools.bfcl.languages.numbers import whole_number

JAVA_TYPES: dict[str, type] = {
    "byte": int,
    "short": int,
    "integer": int,
    "long": int,
    "float": float,
    "double": float,
    "boolean": bool,
    "char": str,
    "String": str,
    "any": str,
    "Array": list,
    "ArrayList": list,
    "HashMap": dict,
}
_INTEGER = re.compile(r"-?\d+$")
_LONG = re.compile(r"-?\d+[lL]$")
_DOUBLE = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?$")
_FLOAT = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fF]$")
_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
_LIST_OF = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)")
_LIST_BLOCK = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*")
_LIST_EMPTY = re.compile(r"new\s+ArrayList<\w*>\(\)")
_ADD = re.compile(r"add\((.+?)\)")
_MAP = re.compile(r"new\s+HashMap<")
_MAP_BLOCK = re.compile(r">\s*\(\)\s*\{\s*\{?\s*")
_MAP_EMPTY = re.compile(r">\s*\(\)")


def java_value(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of a text of the type `kind`, with elements of the type `inner`."""
    if kind in ("byte", "short", "integer"):
        return whole_number(text, text) if _INTEGER.match(text) else text
    if kind == "long":
        return whole_number(text.rstrip("\n")[:-1], text) if _LONG.match(text) else text
    if kind == "double":
        return float(text) if _DOUBLE.match(text) else text
    if kind == "float":
        return float(text.rstrip("\n")[:-1]) if _FLOAT.match(text) else text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "Array":
        return _array(text, inner)
    if kind == "ArrayList":
        return _array_list(text, inner)
    if kind == "HashMap":
        return _hash_map(text)
    return text  # String, char, any


def _array(text: str, inner: str | None) -> Any:
    """`new T[]{a, b}`; empty elements are left out, quotes of strings stay."""
    found = _ARRAY.search(text)
    if not found:
        return text
    parts = [part.strip() for part in found.group(1).split(",")]
    return [java_value(p, inner) if inner else _guessed(p) for p in parts if p]


def _array_list(text: str, inner: str | None) -> Any:
    """`new ArrayList<T>(Arrays.asList(a, b))`, `new ArrayList<T>() {{ add(a); }}`, or empty."""
    found = _LIST_OF.search(text)
    if found:
        return [_element(part.strip(), inner) for part in found.group(1).split(",")]
    block = _LIST_BLOCK.search(text)
    if block:
        end = text.find("}}", block.end() + 1)  # something stands between the braces
        if end >= 0:
            return [_element(p.strip(), inner) for p in _ADD.findall(text, block.end(), end)]
    return [] if _LIST_EMPTY.search(text) else text


def _element(text: str, inner: str | None) -> Any:
    if inner in ("char", "String"):
        return text[1:-1]  # its quotes
    return java_value(text, inner) if inner else _guessed(text)


def _hash_map(text: str) -> Any:
    """`new HashMap<K, V>() {{ put("key", value); }}`, or empty."""
    start = _MAP.search(text)
    if not start:
        return text
    block = _MAP_BLOCK.search(text, start.end())
    end = text.find("}", block.end()) if block else -1
    if end >= 0:
        return {key: _guessed(value.strip()) for key, value in _puts(text[block.end() : end])}
    for start in _MAP.finditer(text):
        empty = _MAP_EMPTY.search(text, start.end())
        if empty and empty.start() < _line_end(text, start.end()):
            return {}
    return text


def _puts(text: str) -> Iterator[tuple[str, str]]:
    """(key, value) of each `put("key", value)`, neither of which runs over a line's end."""
    position = 0
    while (start := text.find('put("', position)) >= 0:
        key = start + len('put("')
        position = key
        quote = key - 1
        while (quote := text.find('",', quote + 1, _line_end(text, key))) >= 0:
            value = quote + 2
            while value < len(text) and text[value].isspace():
                value += 1
            close = text.find(")", value, _line_end(text, value))
            if close >= 0:
                yield text[key:quote], text[value:close]
                position = close + 1
                break


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return end if end >= 0 else len(text)


def _guessed(text: str) -> Any:
    """The value of a text whose type is not said."""
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if _LONG.match(text):
        return whole_number(text.rstrip("\n")[:-1], text)
    if _FLOAT.match(text):
        return float(text.rstrip("\n")[:-1])
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
