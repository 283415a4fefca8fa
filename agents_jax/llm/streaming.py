"""An answer sent piece by piece (server-sent events) put together into the whole one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def assemble(text: str, parse_constant: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """The answer that the events of a stream add up to, in the form of one that is not streamed.

    Raises:
      ValueError: an event that is no JSON, or a stream that ended before its answer did.
    """
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    done = False
    for data in _events(text):
        if data.strip() == "[DONE]":
            done = True
            break
        event = json.loads(data, parse_constant=parse_constant)
        if not isinstance(event, dict):
            raise ValueError(f"an event is a {type(event).__name__}")
        if event.get("error"):
            return {"error": event["error"]}
        for name in ("id", "model", "usage"):
            if event.get(name):
                whole[name] = event[name]
        for piece in event.get("choices") or ():
            _add(choices.setdefault(int(piece.get("index") or 0), {}), piece)
    finished = bool(choices) and all(c.get("finish_reason") for c in choices.values())
    if not finished and not done:
        raise ValueError("the stream ended in the middle")
    whole["choices"] = [{"index": index} | choice for index, choice in sorted(choices.items())]
    return whole


def _events(text: str):
    """The data of each event (WHATWG HTML, section 9.2.6): events end with an empty line."""
    lines: list[str] = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            yield "\n".join(lines)
            lines = []
    if lines:  # the stream broke off, or its last empty line is missing
        yield "\n".join(lines)


def _add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    if piece.get("finish_reason"):
        choice["finish_reason"] = piece["finish_reason"]
    if "text" in piece:
        choice["text"] = choice.get("text", "") + (piece["text"] or "")
    if piece.get("logprobs"):
        merged = choice.setdefault("logprobs", {})
        for name, values in piece["logprobs"].items():
            if isinstance(values, list):
                merged.setdefault(name, []).extend(values)
    if "delta" not in piece:
        return
    message = choice.setdefault("message", {"content": None})
    delta = piece["delta"] or {}
    if delta.get("content"):
        message["content"] = (message["content"] or "") + delta["content"]
    for call in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        index = int(call.get("index") or 0)
        if not 0 <= index <= len(calls):
            raise ValueError(f"tool call number {index} came before number {len(calls)}")
        if index == len(calls):
            calls.append({"function": {"name": "", "arguments": ""}})
        if call.get("id"):
            calls[index]["id"] = call["id"]
        function = call.get("function") or {}
        for name in ("name", "arguments"):
            calls[index]["function"][name] += function.get(name) or ""
