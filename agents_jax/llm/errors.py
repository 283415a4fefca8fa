"""Errors of calls to models: what a user did wrong, and what went wrong on the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

CallErrorKind = Literal[
    "auth",
    "bad_request",
    "budget",
    "connection",
    "deadline",
    "malformed",
    "not_asked",
    "not_recorded",
    "not_found",
    "rate_limit",
    "server",
    "timeout",
    "truncated",
    "unsupported",
]
# What the next request of a batch would meet as well, so that it is not asked.
FATAL: frozenset[str] = frozenset({"auth", "not_found", "budget", "unsupported"})
# What may pass by itself.
RETRIED: frozenset[str] = frozenset({"rate_limit", "server", "timeout", "connection", "truncated"})


class LlmError(Exception):
    """Root of the errors of agents_jax.llm."""


class InvalidRequest(LlmError, ValueError):
    """A request or a setting that no model can serve; the text says what is allowed."""


class MissingCapability(LlmError, ValueError):
    """A model that lacks what a request needs.

    Attributes: model, missing (names of capabilities).
    """

    fatal = True

    def __init__(self, model: str, missing: Iterable[str], elsewhere: str, why: str = ""):
        self.model = model
        self.missing = tuple(sorted(missing))
        names = ", ".join(self.missing)
        reason = f" ({why})" if why else ""
        super().__init__(f"Model {model!r} lacks: {names}{reason}. {elsewhere}")


class CallError(LlmError):
    """A call that was not answered.

    Attributes: kind (one of CallErrorKind), attempts (how often it was tried), status (HTTP, None
    where there is none), retry_after (seconds that the endpoint asked to wait, None for none),
    billed (whether the endpoint may have done the work and charge for it), history (one
    results.Attempt per attempt).
    """

    def __init__(
        self,
        kind: CallErrorKind,
        message: str,
        *,
        attempts: int = 1,
        status: int | None = None,
        retry_after: float | None = None,
        billed: bool = False,
        history: tuple = (),
    ):
        super().__init__(message)
        self.kind = kind
        self.attempts = attempts
        self.status = status
        self.retry_after = retry_after
        self.billed = billed
        self.history = history

    @property
    def fatal(self) -> bool:
        """Whether other requests to the same model would fail alike."""
        return self.kind in FATAL


class BatchError(LlmError):
    """Some request of a batch failed.

    results: one per request and in their order, the answered ones included; those that failed or
      were not asked have `error` set.
    """

    def __init__(self, results: list, noun: str = "request"):
        self.results = results
        failed = [index for index, result in enumerate(results) if result.error is not None]
        real = [i for i in failed if results[i].error.kind != "not_asked"] or failed
        first = results[real[0]].error
        super().__init__(
            f"{len(failed)} of {len(results)} {noun}s not answered; the first, number {real[0]}, "
            f"after {first.attempts} attempt(s): {first.message} "
            f"Answers to the other {len(results) - len(failed)} are in `results` of this error; "
            "on_error='return' gives them without an error."
        )


class RecordingError(LlmError, ValueError):
    """A recording that cannot be read, or that another process is writing."""


class ReplayMiss(LlmError, LookupError):
    """A request that the recording does not answer."""
