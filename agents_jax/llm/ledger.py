"""What calls cost: usage and money per call in a file, and a budget that is not overrun.

Before a call, an upper bound of its cost is set aside; after it, the real cost is booked instead. A
call starts only if all that was spent or is set aside, and its own bound, stay within the budget.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import os
from collections.abc import Mapping
from typing import Any

from agents_jax.llm.errors import CallError, InvalidRequest, RecordingError
from agents_jax.llm.jsonl import JsonLines, read_lines
from agents_jax.llm.results import Usage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices:
    """Price of a million tokens, in the currency of the budget; cached_input None: as input."""

    input: float
    output: float
    cached_input: float | None = None

    def __post_init__(self):
        for name in ("input", "output", "cached_input"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InvalidRequest(f"price {name}={value!r}: a number >= 0 is needed.")

    def cost(self, usage: Usage) -> float:
        """Cost of the usage."""
        cached = self.input if self.cached_input is None else self.cached_input
        fresh = max(0, usage.prompt_tokens - usage.cached_tokens)
        return (
            fresh * self.input
            + usage.cached_tokens * cached
            + usage.completion_tokens * self.output
        ) / 1e6


class Ledger:
    """Entries of calls, their sums, and the budget.

    Args:
      path: file to which each entry is appended as a JSON line; what it holds already counts
        towards the budget. None keeps the sums in memory alone.
      prices: None where nothing is charged.
      budget: most that may be spent, in the currency of the prices; None for no limit.

    Raises:
      InvalidRequest: a budget without prices. RecordingError: the file is damaged or in use.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        prices: Prices | None = None,
        budget: float | None = None,
    ):
        if budget is not None and prices is None:
            raise InvalidRequest(f"budget={budget!r} needs prices; give Prices(input=, output=).")
        if budget is not None and not 0 <= budget < float("inf"):
            raise InvalidRequest(f"budget={budget!r} is not allowed; a number >= 0.")
        self.prices = prices
        self.budget = budget
        self.usage = Usage()
        self.cost = 0.0
        self.calls = 0
        self._set_aside = 0.0
        self._running = 0
        self._changed: asyncio.Event | None = None
        self._file = None if path is None else JsonLines(path)
        if path is not None:
            for number, entry in read_lines(path):
                self._add(entry, f"{path}, line {number}")

    def _add(self, entry: Mapping[str, Any], where: str) -> None:
        try:
            usage = Usage(**entry["usage"])
            cost = float(entry["cost"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"{where} is no entry of a ledger: {error}") from error
        self.usage += usage
        self.cost += cost
        self.calls += 1

    async def reserve(self, bound: Usage) -> float:
        """Sets aside the cost of `bound`, waiting for running calls where that may make room.

        Raises:
          CallError: kind 'budget'; the call could overrun the budget.
        """
        cost = 0.0 if self.prices is None else self.prices.cost(bound)
        while self.budget is not None and self.cost + self._set_aside + cost > self.budget:
            if not self._running:
                raise CallError(
                    "budget",
                    f"budget={self.budget:g} would be overrun: {self.cost:g} is spent and this "
                    f"call may cost up to {cost:g}. Raise the budget, or lower max_tokens.",
                    attempts=0,
                )
            self._changed = self._changed or asyncio.Event()
            await self._changed.wait()
        self._set_aside += cost
        self._running += 1
        return cost

    def settle(self, reserved: float, usage: Usage | None, **facts: Any) -> float:
        """Books a call's real usage (None: it cost nothing) in place of what was set aside."""
        self._set_aside = max(0.0, self._set_aside - reserved)
        self._running -= 1
        if not self._running:
            self._set_aside = 0.0  # no residue of rounding
        cost = 0.0
        if usage is not None:
            cost = 0.0 if self.prices is None else self.prices.cost(usage)
            entry = {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                **facts,
                "usage": dataclasses.asdict(usage),
                "cost": cost,
            }
            if self._file is not None:
                self._file.append([entry])
            self._add(entry, "entry")
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        return cost

    def summary(self) -> dict[str, Any]:
        """Calls, tokens, cost and what is left of the budget (None without one)."""
        left = None if self.budget is None else self.budget - self.cost
        return {
            "calls": self.calls,
            **dataclasses.asdict(self.usage),
            "cost": self.cost,
            "budget_left": left,
        }

    def __repr__(self):
        return f"Ledger({json.dumps(self.summary())})"

    def close(self) -> None:
        """Gives up the file."""
        if self._file is not None:
            self._file.close()
