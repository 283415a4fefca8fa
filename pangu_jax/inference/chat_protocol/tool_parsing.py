"""A model's text back into tool calls, whole or while it streams.

Three written forms are understood:
* `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, one or several, with text around them
  (the convention of the Hermes models, which Qwen follows);
* the whole text is one such object or a list of them (`parameters` stands for `arguments` too);
* the whole text is a Python list of calls with keyword arguments: `[f(a=1), g.h(b="x")]`.

What does not parse stays content. Nothing is evaluated: Python forms are read with `ast` and only
literals are taken.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Collection
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# Python's parser is not meant for text of any size by strangers.
_LONGEST_PYTHON = 100_000


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call: the function's name, and its arguments as JSON text of an object."""

    name: str
    arguments: str


def parse_tool_calls(
    text: str, names: Collection[str], *, parallel: bool = True
) -> tuple[str | None, list[ToolCall]]:
    """The content beside the calls (None where there is none), and the calls.

    Args:
      text: all that the model wrote.
      names: functions on offer; an untagged text is a call only where it names one of them.
      parallel: keep every call, or the first alone.
    """
    reader = ToolCallReader(names, parallel=parallel)
    items = [*reader.feed(text), *reader.finish()]
    content = "".join(item for item in items if isinstance(item, str))
    return content or None, [item for item in items if isinstance(item, ToolCall)]


class ToolCallReader:
    """Text in pieces in, content and calls out; the result does not depend on the pieces.

    Text that may yet become a call is held back: from `<tool_call>` on, and all of a text that
    begins with a bracket.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True):
        self._names, self._parallel = names, parallel
        self._held = ""  # not decided yet
        self._space = ""  # white space after content: dropped where a call follows or ends the text
        self._bare: bool | None = None  # begins with a bracket; None while only white space came
        self._found = False
        self._closes_tried = 0

    def feed(self, text: str) -> list[str | ToolCall]:
        """What is decided by now."""
        self._held += text
        if self._bare is None:
            start = self._held.lstrip()
            if not start:
                return []
            self._bare = start[0] in "{["
        return [] if self._bare else self._scan(final=False)

    def finish(self) -> list[str | ToolCall]:
        """What is left once the text has ended."""
        if self._bare:
            calls = read_bare(self._held, self._names)
            if calls:
                self._held = ""
                return self._take(calls)
        items = self._scan(final=True)
        if not self._found and self._space:
            items.append(self._space)
        return items

    def _scan(self, *, final: bool) -> list[str | ToolCall]:
        items: list[str | ToolCall] = []
        while True:
            at = self._held.find(OPEN)
            if at < 0:
                keep = 0 if final else _overlap(self._held, OPEN)
                cut = len(self._held) - keep
                items += self._content(self._held[:cut])
                self._held = self._held[cut:]
                return items
            items += self._content(self._held[:at])
            self._held = self._held[at:]
            block = self._block(final=final)
            if block is None:
                return items
            length, calls = block
            items += self._take(calls) if calls else self._content(self._held[:length])
            self._held = self._held[length:]
            self._closes_tried = 0

    def _block(self, *, final: bool) -> tuple[int, list[ToolCall]] | None:
        """Length and calls of the block that starts the held text; None while undecided."""
        text = self._held
        closes = text.count(CLOSE)
        if not final and closes == self._closes_tried:
            return None
        self._closes_tried = closes
        try:
            value, end = _DECODER.raw_decode(text, _skip_space(text, len(OPEN)))
            calls = _calls_of(value)
            end = _skip_space(text, end)
            if calls and text.startswith(CLOSE, end):
                return end + len(CLOSE), calls
            # A model that ends its turn often leaves the closing tag out.
            if calls and final and CLOSE.startswith(text[end:]):
                return len(text), calls
        except (ValueError, RecursionError):
            pass
        if not final:
            return None
        close = text.find(CLOSE)
        return (len(OPEN) if close < 0 else close + len(CLOSE)), []

    def _content(self, text: str) -> list[str]:
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        return [body] if body else []

    def _take(self, calls: list[ToolCall]) -> list[ToolCall]:
        if not self._parallel:
            calls = [] if self._found else calls[:1]
        self._found = True
        return calls


def read_bare(text: str, names: Collection[str]) -> list[ToolCall] | None:
    """The calls of a text that is nothing but calls of functions in `names`, else None."""
    text = text.strip()
    try:
        value, end = _DECODER.raw_decode(text)
        calls = _calls_of(value) if end == len(text) else None
    except (ValueError, RecursionError):
        calls = _python_calls(text)
    if not calls or any(call.name not in names for call in calls):
        return None
    return calls


def _calls_of(value: Any) -> list[ToolCall] | None:
    """Calls of a JSON value: one object, or a list of at least one."""
    if isinstance(value, list):
        calls = [_call_of(item) for item in value]
        return None if not calls or None in calls else calls
    call = _call_of(value)
    return None if call is None else [call]


def _call_of(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # as the OpenAI protocol writes them
        try:
            arguments = _DECODER.decode(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    try:
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError):  # 1e999 is read as infinity, which JSON cannot say
        return None


def _python_calls(text: str) -> list[ToolCall] | None:
    if not text.startswith("[") or len(text) > _LONGEST_PYTHON:
        return None
    try:
        body = ast.parse(text, mode="eval").body
        if not isinstance(body, ast.List) or not body.elts:
            return None
        calls = [_python_call(element) for element in body.elts]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return None if None in calls else calls


def _python_call(node: ast.expr) -> ToolCall | None:
    if not isinstance(node, ast.Call) or node.args:
        return None  # without the signature, positional arguments have no names
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        return None
    name = ".".join([function.id, *reversed(parts)])
    if any(keyword.arg is None for keyword in node.keywords):
        return None
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    if not _is_json(arguments):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False))


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | int | float | str)


def _overlap(text: str, tag: str) -> int:
    """How many last characters of the text may be the beginning of the tag."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _refuse(name: str):
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
