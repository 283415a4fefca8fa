"""Server-sent events (WHATWG HTML, section 9.2), one JSON object in each."""

from __future__ import annotations

import json
from typing import Any

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # reverse proxies must not collect events
}
DONE = b"data: [DONE]\n\n"


def dump_json(value: Any) -> bytes:
    """Compact JSON in UTF-8; half surrogate pairs stay escaped, as JSON can write them."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def event(value: Any) -> bytes:
    """One event; JSON has no line breaks outside of strings, where they are escaped."""
    return b"data: " + dump_json(value) + b"\n\n"
