"""What a call of a tool came to."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from agents_jax.tools.calls import Call

ErrorKind = Literal["unknown_tool", "bad_arguments", "raised", "bad_result", "timed_out", "died"]
"""unknown_tool: not in the registry. bad_arguments: they do not fit the definition; it did not run.
raised: an exception (also SystemExit, MemoryError, an import that fails). bad_result: neither text
nor writable as JSON. timed_out: stopped at the time limit. died: its process ended."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """The outcome of one call.

    ok: whether the tool returned. text: its result, or what went wrong, in words for the model.
    error_kind: None where ok. seconds: of wall time, waiting for the worker's start included.
    truncated: the text was longer than allowed; it ends with a note of how much is missing.
    """

    call: Call
    ok: bool
    text: str
    error_kind: ErrorKind | None = None
    seconds: float = 0.0
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a transcript; the call's arguments stand as they were given."""
        return {
            "name": self.call.name,
            "arguments": self.call.arguments,
            "ok": self.ok,
            "text": self.text,
            "error_kind": self.error_kind,
            "seconds": round(self.seconds, 6),
            "truncated": self.truncated,
        }


def cut(text: str, most: int, total: int | None = None) -> tuple[str, bool]:
    """The text with at most `most` characters and a note of what was left out; whether it was cut.

    total: length of the whole text, where `text` is only its beginning. Halves of surrogate pairs,
    which no file in UTF-8 takes, become U+FFFD.
    """
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    total = len(text) if total is None else total
    if total <= most:
        return text, False
    return f"{text[:most]}\n[cut here: {total - most} of {total} characters left out]", True
