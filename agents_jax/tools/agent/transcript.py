"""What an agent did, one JSON line per task, kept whatever happens."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from agents_jax.llm import RecordingError
from agents_jax.llm.hashing import digest
from agents_jax.llm.jsonl import JsonLines, read_lines
from agents_jax.tools.agent.plain import plain
from agents_jax.tools.agent.policy import Cost, Decision, Message, Proposal, Refinement
from agents_jax.tools.calls import Call
from agents_jax.tools.execution import Observation

End = Literal[
    "answer",  # the model answered in words
    "calls",  # it wrote calls, and calls are not executed (LoopSettings.execute)
    "unparsable",  # what it meant as calls could not be read, once too often
    "turn_limit",
    "call_limit",
    "time_limit",
    "repeated_calls",  # the same calls with the same results, once too often
    "model_failed",
    "policy_failed",
    "refiner_failed",
    "executor_failed",
    "interrupted",
]
ENDS: tuple[str, ...] = get_args(End)
# Another run may end otherwise, so that it runs the task again.
_TO_RUN_AGAIN = ("policy_failed", "refiner_failed", "executor_failed", "interrupted")
# Failures of a model's call that another run would meet again.
_LASTING = ("bad_request", "malformed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of the model; None and () are what it did not come to.

    told: what the model was told where its calls could not be read.
    """

    decision: Decision | None = None
    proposal: Proposal | None = None
    refinement: Refinement | None = None
    observations: tuple[Observation, ...] = ()
    told: str = ""

    @property
    def final(self) -> Proposal | None:
        """The proposal that was acted on."""
        return self.proposal if self.refinement is None else self.refinement.proposal

    @property
    def cost(self) -> Cost:
        """Of deciding, of the model's turn and of refining."""
        parts = (self.decision, self.proposal, self.refinement)
        return _sum(part.cost for part in parts if part is not None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """A task from its beginning to its end.

    key: hash of the task and of all that its outcome depends on. offered: names of the candidate
    tools. messages: the whole conversation in the OpenAI form; the first `num_given` are the
    task's. answer: the final one; None where there is none. error: message of what failed; failure:
    kind of a model's failed call (llm.errors). seconds: wall time.
    """

    id: str
    key: str = ""
    model: str = ""
    policy: str = ""
    refiner: str = ""
    offered: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    num_given: int = 0
    turns: tuple[Turn, ...] = ()
    answer: str | None = None
    end: End = "answer"
    error: str = ""
    failure: str = ""
    seconds: float = 0.0

    @property
    def calls(self) -> tuple[Call, ...]:
        """Calls in their order: executed ones, or those written where nothing is executed."""
        if self.end == "calls":
            return (self.turns[-1].final.calls or ()) if self.turns[-1].final else ()
        return tuple(observation.call for observation in self.observations)

    @property
    def observations(self) -> tuple[Observation, ...]:
        """All of them, in their order."""
        return tuple(seen for turn in self.turns for seen in turn.observations)

    @property
    def cost(self) -> Cost:
        """Calls of the model and tokens of all turns; seconds of its calls, not of tools."""
        return _sum(turn.cost for turn in self.turns)

    @property
    def finished(self) -> bool:
        """Whether another run would leave it as it is."""
        if self.end == "model_failed":
            return self.failure in _LASTING
        return self.end not in _TO_RUN_AGAIN

    def to_json(self) -> dict[str, Any]:
        """The transcript as plain JSON."""
        cost = self.cost
        return {
            **plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)}),
            "model_calls": cost.model_calls,
            "prompt_tokens": cost.prompt_tokens,
            "completion_tokens": cost.completion_tokens,
        }


def from_json(record: Mapping[str, Any]) -> Transcript:
    """The transcript that a record of `to_json` stands for.

    Raises:
      RecordingError: it stands for none.
    """
    try:
        known = {field.name for field in dataclasses.fields(Transcript)}
        fields = {name: value for name, value in record.items() if name in known}
        if fields["end"] not in ENDS:
            raise ValueError(f"end {fields['end']!r} is unknown")
        fields["turns"] = tuple(_turn(turn) for turn in record["turns"])
        for name in ("offered", "messages"):
            fields[name] = tuple(fields[name])
        return Transcript(**fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordingError(f"A transcript does not fit together: {error}") from error


def read_transcripts(path: str | os.PathLike[str]) -> dict[str, Transcript]:
    """The last transcript of each task, by its id; {} where there is no file.

    Raises:
      RecordingError: a line that is no transcript.
    """
    if not pathlib.Path(path).exists():
        return {}
    found = {}
    for number, record in read_lines(path):
        try:
            transcript = from_json(record)
        except RecordingError as error:
            raise RecordingError(f"{path}, line {number}: {error}") from error
        found[transcript.id] = transcript
    return found


class TranscriptFile:
    """A file of transcripts that one process appends to; each is on the disk when `add` returns.

    Raises:
      RecordingError: another process writes the file, or it holds something else.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._file = JsonLines(path)
        try:
            self.done = read_transcripts(path)
        except BaseException:
            self._file.close()
            raise

    @property
    def path(self) -> pathlib.Path:
        """Of the file."""
        return self._file.path

    def add(self, transcript: Transcript) -> None:
        """Appends a transcript; it replaces an older one of the same task."""
        self._file.append([transcript.to_json()])
        self.done[transcript.id] = transcript

    def close(self) -> None:
        """Gives up the file and its lock."""
        self._file.close()


def key_of(*parts: Any) -> str:
    """Hash of all that a transcript depends on, as JSON values."""
    return digest(plain(list(parts)))


def _turn(record: Mapping[str, Any]) -> Turn:
    def cost_of(part):
        return part | {"cost": Cost(**part["cost"])}

    def proposal(part):
        calls = part["calls"]
        calls = None if calls is None else tuple(Call(**call) for call in calls)
        return Proposal(**cost_of(part) | {"calls": calls, "call_ids": tuple(part["call_ids"])})

    def refinement(part):
        steps = tuple(proposal(step) for step in part["steps"])
        return Refinement(**part | {"proposal": proposal(part["proposal"]), "steps": steps})

    def optional(make, part):
        return None if part is None else make(part)

    return Turn(
        decision=optional(lambda part: Decision(**cost_of(part)), record["decision"]),
        proposal=optional(proposal, record["proposal"]),
        refinement=optional(refinement, record["refinement"]),
        observations=tuple(
            Observation(**seen | {"call": Call(**seen["call"])}) for seen in record["observations"]
        ),
        told=record["told"],
    )


def _sum(costs: Iterable[Cost]) -> Cost:
    return functools.reduce(operator.add, costs, Cost())
