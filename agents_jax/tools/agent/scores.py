"""How agents did: success, calls that were needless, missed or wrong, and what it took."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from agents_jax.tools.agent.tasks import Expected, ExpectedCall, Task
from agents_jax.tools.agent.transcript import Transcript
from agents_jax.tools.bfcl.evaluate import wilson_interval
from agents_jax.tools.calls import Call

# A sign counts where no digit or letter stands before it: 2024-05-01 holds no -5.
_NUMBER = re.compile(
    r"(?:(?<![\w.])-)?(?<![\d.])(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One task. None: nothing was expected, or nobody said whether a tool is needed.

    success: what was expected came. needless: some call was made though no tool is needed. missed:
    no call was made though one is. num_wrong: calls that failed, or that no expected call matches.
    num_unreadable: texts meant as calls that could not be read.
    """

    id: str
    end: str
    success: bool | None
    needless: bool | None
    missed: bool | None
    num_calls: int
    num_wrong: int
    num_unreadable: int
    model_calls: int
    tokens: int
    seconds: float


def score(task: Task, transcript: Transcript) -> Score:
    """What a transcript is worth."""
    expected, calls, cost = task.expected, transcript.calls, transcript.cost
    checks = []
    if expected.answers is not None:
        said = transcript.answer
        checks.append(said is not None and any(holds(said, one) for one in expected.answers))
    if expected.calls is not None:
        checks.append(_all_made(expected.calls, calls))
    called = bool(calls)
    return Score(
        id=task.id,
        end=transcript.end,
        success=all(checks) if checks else None,
        needless=called if task.needs_tool is False else None,
        missed=not called if task.needs_tool else None,
        num_calls=len(calls),
        num_wrong=_num_wrong(expected, transcript),
        num_unreadable=sum(
            turn.final is not None and turn.final.calls is None for turn in transcript.turns
        ),
        model_calls=cost.model_calls,
        tokens=cost.prompt_tokens + cost.completion_tokens,
        seconds=transcript.seconds,
    )


def holds(text: str, answer: float | int | str) -> bool:
    """Whether an answer in words holds the expected number or text; see tasks.Expected."""
    if isinstance(answer, str):
        return re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", text, re.I) is not None
    written = repr(answer).lower()
    decimals = 0
    if isinstance(answer, float) and not answer.is_integer() and "e" not in written:
        decimals = len(written.partition(".")[2])
    slack = 1e-6 * abs(answer)
    if decimals:
        slack = max(slack, 0.5 * 10.0**-decimals * (1 + 1e-9))
    found = (float(match.replace(",", "")) for match in _NUMBER.findall(text))
    return any(abs(number - answer) <= slack for number in found)


def matches(expected: ExpectedCall, call: Call) -> bool:
    """Whether a call is the expected one: the name, and, where given, equal arguments.

    Numbers are equal by value, texts without surrounding blanks and whatever their case.
    """
    if expected.name != call.name:
        return False
    return expected.arguments is None or _same(expected.arguments, call.arguments)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.strip().casefold() == other.strip().casefold()
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other


def _all_made(expected: Sequence[ExpectedCall], calls: Sequence[Call]) -> bool:
    """Whether each expected call was made, each by a call of its own; () expects none."""
    if not expected:
        return not calls
    left = list(calls)
    # Those with arguments choose first: a call that they need is not spent on a bare name.
    for wanted in sorted(expected, key=lambda call: call.arguments is None):
        found = next((call for call in left if matches(wanted, call)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _num_wrong(expected: Expected, transcript: Transcript) -> int:
    failed = [seen for seen in transcript.observations if not seen.ok]
    if not expected.calls:
        return len(failed)
    bad = {id(seen.call) for seen in failed}
    return sum(
        id(call) in bad or not any(matches(wanted, call) for wanted in expected.calls)
        for call in transcript.calls
    )


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share: hits of trials, and Wilson's 95 % interval of it."""

    hits: int
    trials: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain values, for JSON; the rate is None for no trials."""
        low, high = wilson_interval(self.hits, self.trials)
        rate = self.hits / self.trials if self.trials else None
        return {"hits": self.hits, "trials": self.trials, "rate": rate, "low": low, "high": high}

    def __str__(self) -> str:
        if not self.trials:
            return "–"
        low, high = wilson_interval(self.hits, self.trials)
        return f"{self.hits}/{self.trials} = {self.hits / self.trials:.1%} [{low:.1%}, {high:.1%}]"


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over tasks, with a 95 % interval by the normal approximation."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """NaN for no values."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def half(self) -> float:
        """Half of the interval's width; NaN for fewer than two values."""
        if len(self.values) < 2:
            return math.nan
        return 1.959964 * statistics.stdev(self.values) / math.sqrt(len(self.values))

    def to_dict(self) -> dict[str, float | None]:
        """Plain values, for JSON; None where there is no value."""
        mean, half = self.mean, self.half
        return {
            "mean": None if math.isnan(mean) else mean,
            "half_width": None if math.isnan(half) else half,
        }

    def __str__(self) -> str:
        if not self.values:
            return "–"
        return f"{self.mean:.2f}" + ("" if math.isnan(self.half) else f" ± {self.half:.2f}")


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores of several tasks."""

    scores: tuple[Score, ...]

    def rates(self) -> dict[str, Rate]:
        """Shares by name; 'wrong' and 'unreadable' are of calls, the others of tasks."""

        def of(name: str, scores: Sequence[Score]) -> Rate:
            values = [v for s in scores if (v := getattr(s, name)) is not None]
            return Rate(sum(values), len(values))

        calls = sum(s.num_calls for s in self.scores)
        unreadable = sum(s.num_unreadable for s in self.scores)
        return {
            "success": of("success", self.scores),
            "success, tool needed": of("success", [s for s in self.scores if s.missed is not None]),
            "success, no tool needed": of(
                "success", [s for s in self.scores if s.needless is not None]
            ),
            "needless calls": of("needless", self.scores),
            "missed calls": of("missed", self.scores),
            "wrong calls": Rate(sum(s.num_wrong for s in self.scores), calls),
            "unreadable calls": Rate(unreadable, calls + unreadable),
        }

    def means(self) -> dict[str, Mean]:
        """Means per task by name."""
        return {
            label: Mean(tuple(float(getattr(s, name)) for s in self.scores))
            for label, name in (
                ("tool calls per task", "num_calls"),
                ("model calls per task", "model_calls"),
                ("tokens per task", "tokens"),
                ("seconds per task", "seconds"),
            )
        }

    def ends(self) -> dict[str, int]:
        """How many tasks ended how."""
        return dict(collections.Counter(s.end for s in self.scores).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "num_tasks": len(self.scores),
            "rates": {name: rate.to_dict() for name, rate in self.rates().items()},
            "means": {name: mean.to_dict() for name, mean in self.means().items()},
            "ends": self.ends(),
            "tasks": [dataclasses.asdict(s) for s in self.scores],
        }

    def markdown(self) -> str:
        """Two tables: rates and means, and how tasks ended."""
        lines = ["| measure | value [95 % interval] |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.rates().items()]
        lines += [f"| {name} | {value} |" for name, value in self.means().items()]
        lines += ["", "| end | tasks |", "|---|---|"]
        lines += [f"| {end} | {count} |" for end, count in self.ends().items()]
        return "\n".join(lines)
