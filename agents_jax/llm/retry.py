"""Trying again: exponential back-off with full jitter, within a deadline.

Delays are uniform in [0, min(cap, base * 2**k)] ("full jitter": clients that failed together do not
return together). An endpoint's Retry-After is a lower bound of the delay.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import email.utils
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from agents_jax.llm.errors import RETRIED, CallError, InvalidRequest
from agents_jax.llm.results import Attempt

T = TypeVar("T")


class Clock(Protocol):
    """Time in seconds and waiting; tests give one that does not wait."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits so long."""
        await asyncio.sleep(seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a call is tried again.

    max_attempts: tries at most, the first included. base, cap: seconds; of the bounds of delays.
    max_retry_after: seconds; an endpoint that asks for a longer wait is not waited for.
    deadline: seconds from the first try to the last answer, waits included; None for none.
    """

    max_attempts: int = 6
    base: float = 0.5
    cap: float = 30.0
    max_retry_after: float = 300.0
    deadline: float | None = 900.0

    def __post_init__(self):
        if not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise InvalidRequest(f"max_attempts={self.max_attempts!r}: an integer >= 1 is needed.")
        for name in ("base", "cap", "max_retry_after"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidRequest(f"{name}={getattr(self, name)!r}: seconds >= 0 are needed.")
        if self.deadline is not None and not self.deadline > 0:
            raise InvalidRequest(f"deadline={self.deadline!r}: seconds > 0, or None, are needed.")

    def bound(self, failures: int) -> float:
        """Longest delay in seconds after so many failures (>= 1), without a Retry-After."""
        # The exponent is bounded: 2.0**1100 would overflow.
        return min(self.cap, self.base * 2.0 ** min(failures - 1, 64))


async def with_retries(
    call: Callable[[float | None], Awaitable[T]],
    policy: RetryPolicy,
    *,
    clock: Clock,
    rng: random.Random,
) -> tuple[T, tuple[Attempt, ...]]:
    """The first answer of `call`, and how each attempt went.

    Args:
      call: one try; gets the seconds left until the deadline (None: no deadline).

    Raises:
      CallError: the last one, with `attempts` and `history` set; kind 'deadline' where no time is
        left for the next try.
    """
    start = clock.now()
    history: list[Attempt] = []

    def left() -> float | None:
        return None if policy.deadline is None else policy.deadline - (clock.now() - start)

    def give_up(error: CallError, kind: str, message: str):
        new = CallError(
            kind,
            message,
            attempts=len(history),
            status=error.status,
            retry_after=error.retry_after,
            billed=error.billed,
            history=tuple(history),
        )
        raise new from error

    while True:
        began = clock.now()
        try:
            answer = await call(left())
        except CallError as error:
            failure = error
        else:
            history.append(Attempt("ok", clock.now() - began))
            return answer, tuple(history)
        history.append(Attempt(failure.kind, clock.now() - began, 0.0, failure.status))
        count = len(history)
        if failure.kind not in RETRIED:
            give_up(failure, failure.kind, str(failure))
        if count >= policy.max_attempts:
            give_up(failure, failure.kind, f"{failure} Tried {count} time(s) in all.")
        delay = rng.uniform(0.0, policy.bound(count))
        if failure.retry_after is not None:
            if failure.retry_after > policy.max_retry_after:
                give_up(
                    failure,
                    failure.kind,
                    f"{failure} It asks to wait {failure.retry_after:.0f} s, more than "
                    f"max_retry_after={policy.max_retry_after:.0f} s.",
                )
            delay = max(delay, failure.retry_after)
        remaining = left()
        if remaining is not None and delay >= remaining:
            give_up(
                failure,
                "deadline",
                f"{failure} Tried {count} time(s); no time for another within "
                f"deadline={policy.deadline:.0f} s.",
            )
        history[-1] = dataclasses.replace(history[-1], waited=delay)
        await clock.sleep(delay)


def parse_retry_after(value: str | None, now: datetime.datetime | None = None) -> float | None:
    """Seconds to wait out of a Retry-After header (seconds or a date, RFC 9110 section 10.2.3).

    None where there is no header or it says nothing sensible.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    now = now or datetime.datetime.now(datetime.UTC)
    return max(0.0, (moment - now).total_seconds())
