"""How good decisions and scores are: AUROC, accuracy, calibration, intervals, paired tests.

Letters: N examples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import binomtest, rankdata

_LEAST_DISCORDANT = 1


def auroc(scores: np.ndarray, needed: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half; NaN where one label is absent."""
    needed = np.asarray(needed, bool)
    positive, negative = int(needed.sum()), int((~needed).sum())
    if not positive or not negative:
        return math.nan
    ranks = rankdata(scores)
    return float(
        (ranks[needed].sum() - positive * (positive + 1) / 2) / (positive * negative)
    )  # fmt: skip


def fold_auroc(scores: np.ndarray, needed: np.ndarray, folds: np.ndarray) -> float:
    """Mean over folds of the AUROC in each, weighted by its pairs: scores of different folds come
    from different fits and are not compared.
    """
    total = weight = 0.0
    for fold in np.unique(folds):
        at = folds == fold
        pairs = float(needed[at].sum() * (~needed[at]).sum())
        if pairs:
            total += pairs * auroc(scores[at], needed[at])
            weight += pairs
    return total / weight if weight else math.nan


def bootstrap(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, *, draws: int, seed: int
) -> tuple[float, float]:
    """Percentile interval at 95 % of a statistic of examples' places; whole groups are drawn.

    Args:
      statistic: function of int [any] places. groups: int [N], examples that hang together.
    """
    rng = np.random.default_rng(seed)
    _, inverse = np.unique(groups, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(inverse.max() + 2))
    members = [order[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    values = []
    for _ in range(draws):
        drawn = rng.integers(len(members), size=len(members))
        value = statistic(np.concatenate([members[i] for i in drawn]))
        if not math.isnan(value):
            values.append(value)
    if not values:
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def platt(scores: np.ndarray, needed: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities of scores by a logistic curve fitted on validation examples."""
    from sklearn.linear_model import LogisticRegression

    scores = np.asarray(scores, np.float64)
    middle, spread = scores.mean(), scores.std() or 1.0
    if len(np.unique(needed)) < 2:
        return lambda values: np.full(len(values), float(np.mean(needed)))
    model = LogisticRegression(C=1e3).fit(((scores - middle) / spread)[:, None], needed)
    return lambda values: model.predict_proba(
        ((np.asarray(values, np.float64) - middle) / spread)[:, None]
    )[:, 1]


def brier(probabilities: np.ndarray, needed: np.ndarray) -> float:
    """Mean squared difference of probability and label; 0.25 for always one half."""
    return float(np.mean((probabilities - np.asarray(needed, float)) ** 2))


def calibration_error(probabilities: np.ndarray, needed: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over bins of equally many examples."""
    order = np.argsort(probabilities, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        gap = abs(probabilities[part].mean() - np.asarray(needed, float)[part].mean())
        total += len(part) * gap
    return float(total / len(order))


def mcnemar(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Exact McNemar test of two methods on the same examples.

    Args:
      one, other: whether each is right, bool [N].

    Returns:
      'only_one', 'only_other': examples that only one of both gets right; 'p': two-sided.
    """
    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    discordant = only_one + only_other
    p = binomtest(only_one, discordant).pvalue if discordant >= _LEAST_DISCORDANT else 1.0
    return {"only_one": only_one, "only_other": only_other, "p": float(p)}


def flips(yes: np.ndarray, decided: np.ndarray, needed: np.ndarray) -> dict[str, int]:
    """How many answers were turned which way, and how many of these rightly."""
    yes, decided, needed = (np.asarray(x, bool) for x in (yes, decided, needed))
    to_no, to_yes = yes & ~decided, ~yes & decided
    return {
        "yes_to_no": int(to_no.sum()),
        "yes_to_no_right": int((to_no & ~needed).sum()),
        "no_to_yes": int(to_yes.sum()),
        "no_to_yes_right": int((to_yes & needed).sum()),
        "kept_yes": int((yes & decided).sum()),
        "kept_no": int((~yes & ~decided).sum()),
    }


def confusion(decided: np.ndarray, needed: np.ndarray) -> dict[str, int]:
    """Counts of decisions by label."""
    decided, needed = np.asarray(decided, bool), np.asarray(needed, bool)
    return {
        "called_needed": int((decided & needed).sum()),
        "called_needless": int((decided & ~needed).sum()),
        "missed": int((~decided & needed).sum()),
        "rightly_not_called": int((~decided & ~needed).sum()),
    }


@dataclasses.dataclass(frozen=True)
class Result:
    """One method on one data set. auroc, ece, brier are NaN where it gives no score."""

    method: str
    accuracy: float
    accuracy_interval: tuple[float, float]
    auroc: float
    auroc_interval: tuple[float, float]
    brier: float
    ece: float
    confusion: dict[str, int]
    flips: dict[str, int] | None
    details: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
