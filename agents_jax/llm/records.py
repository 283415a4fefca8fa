"""Results as JSON records and back; arrays as base64 of little-endian float32."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import numpy as np

from agents_jax.llm.errors import RecordingError
from agents_jax.llm.results import (
    Attempt,
    Choice,
    ContinuationScore,
    Failure,
    HiddenStates,
    Response,
    Scores,
    Token,
    ToolCall,
    Usage,
)


def to_json(result: Response | Scores | HiddenStates) -> dict[str, Any]:
    """The result as plain JSON, without fields at their default."""
    record: dict[str, Any] = {"type": type(result).__name__}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, np.ndarray):
            little = np.ascontiguousarray(value, "<f4")
            value = {
                "shape": list(little.shape),
                "float32": base64.b64encode(little.tobytes()).decode("ascii"),
            }
        elif value == field.default:
            continue
        record[field.name] = _plain(value)
    return record


def _plain(value):
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def from_json(record: dict[str, Any]) -> Response | Scores | HiddenStates:
    """The result that a record of `to_json` stands for.

    Raises:
      RecordingError: it stands for none.
    """
    try:
        return _from_json(dict(record))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordingError(f"A recorded answer does not fit together: {error}") from error


def _from_json(record):
    kind = record.pop("type")
    record["usage"] = Usage(**record.get("usage", {}))
    record["attempts"] = tuple(Attempt(**a) for a in record.get("attempts", ()))
    if record.get("error") is not None:
        record["error"] = Failure(**record["error"])
    if kind == "Response":
        record["choices"] = tuple(_choice(c) for c in record.get("choices", ()))
        return Response(**record)
    if kind == "Scores":
        record["continuations"] = tuple(
            ContinuationScore(
                **c
                | {
                    "tokens": tuple(c.get("tokens", ())),
                    "token_logprobs": tuple(c.get("token_logprobs", ())),
                }
            )
            for c in record.get("continuations", ())
        )
        return Scores(**record)
    if kind == "HiddenStates":
        values = record["values"]
        flat = np.frombuffer(base64.b64decode(values["float32"], validate=True), "<f4")
        record["values"] = flat.reshape(values["shape"]).astype(np.float32)
        for name in ("positions", "tokens"):
            record[name] = tuple(record.get(name, ()))
        return HiddenStates(**record)
    raise ValueError(f"type {kind!r} is unknown")


def _choice(record):
    return Choice(
        **record
        | {
            "tool_calls": tuple(ToolCall(**call) for call in record.get("tool_calls", ())),
            "logprobs": tuple(
                Token(t["text"], t["logprob"], tuple((a, b) for a, b in t.get("top", ())))
                for t in record.get("logprobs", ())
            ),
        }
    )
