"""What was said and done in a multi-turn item, as data and as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from agents_jax.llm.results import Usage
from agents_jax.tools.calls import Call, CallParseError, parse_calls

Stop = Literal["no_call", "step_limit", "failed"]


@dataclasses.dataclass(frozen=True)
class Step:
    """One answer of the model.

    text: what it wrote. tool_calls: (name, arguments as JSON text) of native calls. results: of the
    calls in it, in order; empty where there was none or they were not executed.
    """

    text: str
    tool_calls: tuple[tuple[str, str], ...] = ()
    results: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Turn:
    """The steps of a turn and why it ended: no further call, too many steps, or a failure."""

    steps: tuple[Step, ...]
    stopped: Stop = "no_call"


@dataclasses.dataclass(frozen=True)
class TurnsTranscript:
    """The answers to an item.

    native: calls were given as tool calls of the model's protocol, not in texts.
    error: why it ended before its last turn, where it was not by the step limit.
    usage: tokens of all steps. seconds: wall time.
    """

    id: str
    category: str
    turns: tuple[Turn, ...]
    native: bool = False
    error: str | None = None
    usage: Usage = Usage()
    seconds: float = 0.0

    def calls(self) -> list[list[list[Call]]]:
        """Calls by turn and step; steps that make none, or cannot be read, are left out."""
        return [
            [calls for step in turn.steps if (calls := step_calls(step, native=self.native))]
            for turn in self.turns
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TurnsTranscript:
        """A transcript out of `to_dict`.

        Raises:
          ValueError: a record that is none.
        """
        try:
            turns = tuple(
                Turn(
                    tuple(
                        Step(
                            str(step["text"]),
                            tuple((str(n), str(a)) for n, a in step["tool_calls"]),
                            tuple(map(str, step["results"])),
                        )
                        for step in turn["steps"]
                    ),
                    turn["stopped"],
                )
                for turn in record["turns"]
            )
            fields = {**record, "turns": turns, "usage": Usage(**record["usage"])}
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no transcript of a multi-turn item: {error!r}") from error


def step_calls(step: Step, *, native: bool = False) -> list[Call] | None:
    """The calls that a step makes; None where it cannot be read.

    Texts are read as the leaderboard's executor reads them: with the 'bfcl' dialect of
    `parse_calls`, and refused where an argument is an empty dict, which it cannot write down.
    """
    if native:
        try:
            return [Call(name, _arguments(text)) for name, text in step.tool_calls]
        except ValueError:
            return None
    try:
        calls = parse_calls(step.text, dialect="bfcl")
    except CallParseError:
        return None
    if any(_has_empty_dict(v) for call in calls for v in call.arguments.values()):
        return None
    return calls


def _arguments(text: str) -> dict[str, Any]:
    value = json.loads(text or "{}")
    if not isinstance(value, dict):
        raise ValueError(f"arguments are a {type(value).__name__}")
    return value


def _has_empty_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        not value or any(_has_empty_dict(v) for v in _written_down(value))
    )


def _written_down(value: Mapping) -> list[Any]:
    """What the executor looks at: the arguments of a nested call, or a dict's values."""
    if all(isinstance(v, Mapping) for v in value.values()):
        return list(next(iter(value.values())).values())
    return list(value.values())
