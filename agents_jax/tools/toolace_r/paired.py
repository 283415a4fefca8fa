"""Two ways of answering the same items: the paired difference, a test, and a verdict.

What counts as no difference is settled here, before any run: see `Comparison.verdict`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

ALPHA = 0.05
"""Level of McNemar's test, and of the intervals (95 %)."""
MARGIN = 0.05
"""Differences within five points count as none where the whole interval lies inside."""

Verdict = Literal["different", "no difference", "undecided"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Counts of items by who is right, and what follows.

    num_items: compared. gained: only the second is right. lost: only the first is.
    difference: accuracy of the second minus that of the first, in [-1, 1]. low, high: its 95 %
      interval. p_value: of McNemar's exact test, two-sided.
    """

    num_items: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def verdict(self) -> Verdict:
        """'different' where McNemar's p <= .05; else 'no difference' where the 95 % interval of
        the paired difference lies within 5 points of 0; else 'undecided': too few items to say.
        """
        if self.p_value <= ALPHA:
            return "different"
        return "no difference" if -MARGIN <= self.low and self.high <= MARGIN else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """Everything and the verdict as plain values."""
        return dataclasses.asdict(self) | {"verdict": self.verdict}


def compare(first: Sequence[bool], second: Sequence[bool]) -> Comparison:
    """Compares right and wrong answers to the same items in the same order.

    Intervals: Bonett and Price, J. Educ. Behav. Stat. 37 (2012), the adjusted Wald interval for
    paired proportions. Test: exact binomial on the discordant pairs (McNemar 1947).

    Raises:
      ValueError: not equally many answers, or none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"{len(first)} and {len(second)} answers cannot be paired; give one each per item."
        )
    from scipy import stats

    n = len(first)
    gained = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    lost = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    p_value = 1.0
    if gained + lost:
        p_value = float(stats.binomtest(gained, gained + lost, 0.5).pvalue)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    z = float(stats.norm.ppf(1 - ALPHA / 2))
    half = z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Comparison(n, gained, lost, (gained - lost) / n, low, high, p_value)
