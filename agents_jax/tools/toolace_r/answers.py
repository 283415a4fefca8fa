"""Answers as texts and as the calls that they hold; when two of them are the same answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agents_jax.tools.calls import (
    Call,
    CallParseError,
    Dialect,
    parse_calls,
    render_calls,
    same_calls,
)

if TYPE_CHECKING:
    from agents_jax.llm import Response

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A model's text and the calls in it; calls is None where the text is no list of calls."""

    text: str
    calls: tuple[Call, ...] | None

    @classmethod
    def read(cls, text: str, dialect: Dialect = "any") -> Answer:
        """The text parsed as `parse_calls` does; never raises, whatever the text."""
        try:
            return cls(text, tuple(parse_calls(text, dialect=dialect)))
        except CallParseError:
            return cls(text, None)


def same_answer(one: Answer, other: Answer) -> bool:
    """Whether both make the same calls (order-free, types count), or, where neither can be read,
    are the same text but for blanks at its ends (reconstructed: the paper says 'identical').
    """
    if one.calls is None or other.calls is None:
        return one.calls is other.calls and one.text.strip() == other.text.strip()
    return same_calls(one.calls, other.calls)


def response_text(response: Response) -> str:
    """Text of a response; calls that an endpoint returned apart from the text are written as JSON.

    Raises:
      InvalidRequest: the request was not answered, or a native call's arguments are no JSON object.
    """
    if not response.tool_calls:
        return response.text
    calls = [Call(call.name, call.parse()) for call in response.tool_calls]
    return render_calls(calls, "json")


def refinement_messages(
    messages: Sequence[Message], answer: str, instruction: str
) -> tuple[Message, ...]:
    """The chat that asks for one more look: the conversation, the last answer, the instruction.

    Earlier answers are left out (ours; what the paper keeps in context is not known).
    """
    return (
        *messages,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": instruction},
    )
