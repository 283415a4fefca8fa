"""What comes back from a model. Log-probabilities are natural logarithms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents_jax.llm.errors import InvalidRequest


@dataclasses.dataclass(frozen=True)
class Token:
    """A token as text, its log-probability, and the likeliest in its place as (text, logprob)."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called; arguments as the JSON text that it wrote."""

    name: str
    arguments: str
    id: str = ""

    def parse(self) -> dict[str, Any]:
        """The arguments as a mapping.

        Raises:
          InvalidRequest: the model wrote no JSON object.
        """
        try:
            value = json.loads(self.arguments or "{}")
        except json.JSONDecodeError as error:
            raise InvalidRequest(
                f"arguments of {self.name!r} are no JSON ({error}): {self.arguments[:200]!r}"
            ) from error
        if not isinstance(value, dict):
            raise InvalidRequest(f"arguments of {self.name!r} are no object: {value!r}")
        return value


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens read and written. estimated: the endpoint gave none; these are upper bounds."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.estimated or other.estimated,
        )


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a request was not answered; kind is one of errors.CallErrorKind."""

    kind: str
    message: str
    attempts: int = 1


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One try of a call: how it ended ('ok' or a kind of failure), seconds it took, then waited."""

    outcome: str
    seconds: float
    waited: float = 0.0
    status: int | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """One sample. finish_reason: stop, length, tool_calls, or what else the endpoint said."""

    text: str
    finish_reason: str = "stop"
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Token, ...] = ()
    sample: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Result:
    """model: as it named itself. latency: seconds. error: None where all was answered.

    cached: read from a recording. attempts: of the calls behind it.
    """

    model: str = ""
    usage: Usage = Usage()
    latency: float = 0.0
    error: Failure | None = None
    attempts: tuple[Attempt, ...] = ()
    cached: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response(_Result):
    """Answer to a GenerateRequest: its samples in order.

    text, tool_calls, finish_reason and logprobs are those of the first sample.
    """

    choices: tuple[Choice, ...] = ()

    def _first(self) -> Choice:
        if not self.choices:
            why = self.error.message if self.error else "it has no choices"
            raise InvalidRequest(f"This request was not answered: {why}")
        return self.choices[0]

    @property
    def text(self) -> str:
        """Text of the first sample."""
        return self._first().text

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts of all samples."""
        return tuple(choice.text for choice in self.choices)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Tool calls of the first sample."""
        return self._first().tool_calls

    @property
    def finish_reason(self) -> str:
        """Why the first sample ended."""
        return self._first().finish_reason

    @property
    def logprobs(self) -> tuple[Token, ...]:
        """Tokens of the first sample, where log-probabilities were asked for."""
        return self._first().logprobs


@dataclasses.dataclass(frozen=True)
class ContinuationScore:
    """A continuation, its log-probability, and its tokens with theirs.

    bound: the continuation was not among the reported ones; its log-probability is at most this.
    """

    text: str
    logprob: float
    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float, ...] = ()
    bound: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores(_Result):
    """Answer to a ScoreRequest, in the order of its continuations.

    method: 'joint' or 'separate' (tokenised with the prompt or apart), 'echo', 'top_logprobs' (of
      an endpoint) or 'scripted'.
    """

    continuations: tuple[ContinuationScore, ...] = ()
    method: str = ""

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probability of each continuation (sum over its tokens)."""
        return tuple(score.logprob for score in self.continuations)

    @property
    def best(self) -> int:
        """Index of the likeliest continuation; the first of equals."""
        return int(np.argmax(self.logprobs))

    def probabilities(self) -> np.ndarray:
        """Probabilities [num_continuations] among the given continuations alone (float64)."""
        logprobs = np.asarray(self.logprobs, np.float64)
        weights = np.exp(logprobs - logprobs.max())
        return weights / weights.sum()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HiddenStates(_Result):
    """values: float32 [num_layers, num_positions, d_model]; tokens: texts at the positions."""

    values: np.ndarray | None = None
    positions: Sequence[int] = ()
    tokens: Sequence[str] = ()
