"""Scores of model answers on BFCL items, with intervals and what went wrong."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from agents_jax.tools.bfcl.checker import check
from agents_jax.tools.bfcl.data import ANSWERED_CATEGORIES, Item
from agents_jax.tools.bfcl.languages import parse_language_calls
from agents_jax.tools.calls import Call, CallParseError, Dialect, parse_calls

PARSE_FAILURE = "parse_failure"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One answer: calls is None where the text is no list of calls, error_type None if correct."""

    id: str
    category: str
    correct: bool
    error_type: str | None
    message: str
    calls: tuple[Call, ...] | None
    right_names: bool


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many of how many are right; the rate is in [0, 1], the interval Wilson's at 95 %."""

    num_items: int
    num_correct: int

    @property
    def rate(self) -> float:
        """Share of what is right; NaN for no items."""
        return self.num_correct / self.num_items if self.num_items else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the rate."""
        return wilson_interval(self.num_correct, self.num_items)


@dataclasses.dataclass(frozen=True)
class Score(Counts):
    """Counts of a set of answers."""

    num_parse_failures: int
    num_right_names: int
    errors: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        low, high = self.interval
        n = self.num_items or math.nan
        return {
            "num_items": self.num_items,
            "rate": self.rate,
            "low": low,
            "high": high,
            "parse_failure_rate": self.num_parse_failures / n,
            "right_names_rate": self.num_right_names / n,
            "errors": dict(self.errors),
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """Scores by category, of all items whose calls are compared (`calls`), and of all items where
    no call is due (`irrelevance`) or some call is (`relevance`).

    A model that writes no calls at all has an irrelevance rate of 1: read it beside `calls`.
    """

    categories: dict[str, Score]
    calls: Score
    irrelevance: Score
    relevance: Score
    outcomes: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the outcomes as plain values, for JSON."""
        totals = {"calls": self.calls, "irrelevance": self.irrelevance, "relevance": self.relevance}
        return {
            "total": {name: s.to_dict() for name, s in totals.items() if s.num_items},
            "categories": {name: s.to_dict() for name, s in self.categories.items()},
        }

    def __str__(self) -> str:
        rows = dict(self.categories)
        rows |= {
            f"all: {name}": score
            for name, score in (
                ("calls", self.calls),
                ("irrelevance", self.irrelevance),
                ("relevance", self.relevance),
            )
            if score.num_items
        }
        lines = [
            f"{'':24}{'items':>6}{'correct':>9}  {'95 % interval':15}{'unparsed':>9}{'names':>7}"
        ]
        for name, score in rows.items():
            low, high = score.interval
            lines.append(
                f"{name:24}{score.num_items:6}{score.rate:9.1%}  [{low:6.1%}, {high:6.1%}]"
                f"{score.num_parse_failures:9}{score.num_right_names:7}"
            )
        return "\n".join(lines)


def evaluate(items: Sequence[Item], texts: Sequence[str], *, dialect: Dialect = "bfcl") -> Report:
    """Scores of one text per item.

    Args:
      items: of any categories that `data.load` reads.
      texts: the models' answers, in the order of the items.
      dialect: how calls are read; 'bfcl' as the leaderboard's default does, 'any' also takes JSON,
        Hermes and fenced code, see `parse_calls`. Java and JavaScript are read one way.

    Raises:
      ValueError: not as many texts as items.
    """
    if len(items) != len(texts):
        raise ValueError(f"{len(texts)} texts for {len(items)} items; one each is needed.")
    outcomes = tuple(
        judge(item, text, dialect=dialect) for item, text in zip(items, texts, strict=True)
    )
    return Report(
        categories={
            name: _score([o for o in outcomes if o.category == name])
            for name in dict.fromkeys(item.category for item in items)
        },
        calls=_score([o for o in outcomes if o.category in ANSWERED_CATEGORIES]),
        irrelevance=_score([o for o in outcomes if "irrelevance" in o.category]),
        relevance=_score([o for o in outcomes if o.category.endswith("_relevance")]),
        outcomes=outcomes,
    )


def judge(item: Item, text: str, *, dialect: Dialect = "bfcl") -> Outcome:
    """One answer read and checked. A text that cannot be read counts as no call."""
    try:
        calls: list[Call] | None = read_answer(item, text, dialect=dialect)
        message = ""
    except CallParseError as error:
        calls, message = None, str(error)
    if calls is None and item.category in ANSWERED_CATEGORIES:
        return Outcome(item.id, item.category, False, PARSE_FAILURE, message, None, False)
    verdict = check(item, calls or [])
    names = collections.Counter(call.name for call in calls or [])
    return Outcome(
        item.id,
        item.category,
        verdict.valid,
        verdict.error_type,
        verdict.message or message,
        None if calls is None else tuple(calls),
        names == collections.Counter(item.called_names),
    )


def read_answer(item: Item, text: str, *, dialect: Dialect = "bfcl") -> list[Call]:
    """The calls that a text makes, in the item's language.

    Raises:
      CallParseError: the text is not a list of calls.
    """
    if item.language == "python":
        return parse_calls(text, dialect=dialect)
    return parse_language_calls(text, item.language)


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a binomial proportion; (0, 1) for no trials.

    Source: E. B. Wilson, JASA 22 (1927). z: quantile of the normal distribution, 95 % by default.
    """
    if trials == 0:
        return 0.0, 1.0
    p, s = successes / trials, z * z / trials
    middle = (p + s / 2) / (1 + s)
    half = z * math.sqrt(p * (1 - p) / trials + s / (4 * trials)) / (1 + s)
    return max(0.0, middle - half), min(1.0, middle + half)


def _score(outcomes: Sequence[Outcome]) -> Score:
    return Score(
        num_items=len(outcomes),
        num_correct=sum(o.correct for o in outcomes),
        num_parse_failures=sum(o.calls is None for o in outcomes),
        num_right_names=sum(o.right_names for o in outcomes),
        errors=dict(collections.Counter(o.error_type for o in outcomes if o.error_type)),
    )
