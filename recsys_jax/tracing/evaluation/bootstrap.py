"""How sure the metrics are: resampled students, paired differences, many seeds.

Answers of one student hang together, so students are drawn, never rows. The draws depend on the
seed and the set of students alone: two models on the same students meet the same resamples, which
makes their difference paired.

Letters: N rows, S students, R resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from recsys_jax.evaluation.intervals import Comparison, Interval, SeedSummary
from recsys_jax.tracing.evaluation.metrics import (
    METRICS,
    NUM_BINS,
    auc_of_groups,
    bin_of,
    point_metrics,
    row_losses,
    sort_scores,
)
from recsys_jax.tracing.evaluation.rows import Rows

NUM_RESAMPLES = 1000
# Rows times resamples up to which the AUC of each resample is counted out; see `_auc_draws`.
EXACT_WORK = 2 * 10**8
_CHUNK = 2**22  # Numbers held at once while resampling.


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics of one model on one set of rows, with their bootstrap draws.

    values: metric -> value on all rows. draws: metric -> float64 [R], the same metric on resampled
    students. fingerprint: of the rows; equal for what may be compared in pairs.
    """

    values: dict[str, float]
    draws: dict[str, np.ndarray]
    num_rows: int
    num_students: int
    fingerprint: int
    seed: int

    def interval(self, metric: str, level: float = 0.95) -> Interval:
        """Confidence interval over students; NaN where the metric is not defined."""
        return _interval(metric, self.values[metric], self.draws[metric], level)


def score(
    rows: Rows,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    num_bins: int = NUM_BINS,
    exact_work: int = EXACT_WORK,
) -> Scores:
    """All of METRICS on the rows, pooled, with bootstrap draws over students.

    Raises ValueError for a number of resamples below 1.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} must be at least 1 (usual: 1000).")
    values = point_metrics(rows, num_bins)
    students, student = np.unique(rows.student, return_inverse=True)
    draws = {metric: np.full(num_resamples, np.nan) for metric in METRICS}
    if len(rows):
        tables = _Tables(rows, student, students.size, num_bins)
        exact = len(rows) * num_resamples <= exact_work
        begin = 0
        for weights in resample_students(students.size, num_resamples, seed):
            end = begin + len(weights)
            for metric, drawn in tables.draws(weights, exact).items():
                draws[metric][begin:end] = drawn
            begin = end
    return Scores(values, draws, len(rows), students.size, rows.fingerprint(), seed)


def resample_students(num_students: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each student is drawn: float64 [r, S] at a time, R rows in all, each summing to S.

    The same numbers for the same arguments, whatever is scored with them.
    """
    rng = np.random.default_rng([seed, num_students])
    chunk = max(_CHUNK // max(num_students, 1), 1)
    for begin in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - begin)
        drawn = rng.integers(0, num_students, (size, num_students))
        drawn += num_students * np.arange(size)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=size * num_students)
        yield counts.reshape(size, num_students).astype(np.float64)


class _Tables:
    """Sums per student, from which the metrics of a resample follow."""

    def __init__(self, rows, student, num_students, num_bins):
        self.count = np.bincount(student, minlength=num_students).astype(np.float64)
        self.sums = {
            name: np.bincount(student, values, num_students)
            for name, values in row_losses(rows).items()
        }
        gap = rows.probability.astype(np.float64) - rows.response
        cell = student * num_bins + bin_of(rows.probability, num_bins)
        self.gaps = np.bincount(cell, gap, num_students * num_bins).reshape(num_students, num_bins)
        order, self.starts = sort_scores(rows.probability)
        self.student = student[order]
        self.response = rows.response[order].astype(np.float64)
        self._linear = None

    def draws(self, weights, exact):
        """metric -> float64 [r] for weights [r, S]."""
        total = weights @ self.count
        means = {name: weights @ sums / total for name, sums in self.sums.items()}
        return {
            "AUC": self._exact_auc(weights) if exact else self._linear_auc(weights),
            "ACC": means["ACC"],
            "RMSE": np.sqrt(means["MSE"]),
            "log-loss": means["log-loss"],
            "ECE": np.abs(weights @ self.gaps).sum(1) / total,
        }

    def _exact_auc(self, weights):
        out = np.empty(len(weights))
        for i, row in enumerate(weights):
            w = row[self.student]
            right = w * self.response
            wrong = w - right
            if self.starts.size < w.size:
                right = np.add.reduceat(right, self.starts)
                wrong = np.add.reduceat(wrong, self.starts)
            out[i] = auc_of_groups(right, wrong)
        return out

    def _linear_auc(self, weights):
        """First-order term in the students' weights; its error falls as 1 / S, its cost is R * S.

        The influence of student i is (pairs it is part of) / (all pairs) less what its numbers of
        right and wrong answers would bring at the overall AUC (Obuchowski 1997, clustered AUC).
        """
        if not 0 < self.response.sum() < self.response.size:
            return np.full(len(weights), np.nan)
        if self._linear is None:
            size = self.count.size
            r = self.response
            right = np.add.reduceat(r, self.starts)
            wrong = np.add.reduceat(1.0 - r, self.starts)
            group = np.repeat(np.arange(self.starts.size), np.diff(np.append(self.starts, r.size)))
            beaten = (np.cumsum(wrong) - 0.5 * wrong)[group]
            beats = (right.sum() - np.cumsum(right) + 0.5 * right)[group]
            pairs = np.bincount(self.student, np.where(r > 0, beaten, beats), size)
            rights = np.bincount(self.student, r, size)
            area = auc_of_groups(right, wrong)
            influence = pairs / (right.sum() * wrong.sum()) - area * (
                rights / right.sum() + (self.count - rights) / wrong.sum()
            )
            self._linear = area, influence
        area, influence = self._linear
        return area + (weights - 1.0) @ influence


def _interval(metric, value, draws, level):
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level} must lie between 0 and 1 (for example 0.95).")
    draws = draws[np.isfinite(draws)]  # A resample of one class only has no AUC.
    if not draws.size or not np.isfinite(value):
        return Interval(value, float("nan"), float("nan"), level)
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    if metric == "ECE":
        # ECE grows with noise, and a resample carries the noise twice; reflection takes it off.
        # The interval may then lie below the value itself.
        low, high = max(2 * value - high, 0.0), max(2 * value - low, 0.0)
    return Interval(float(value), float(low), float(high), level)


def over_seeds(scores: Sequence[Scores], metric: str, level: float = 0.95) -> SeedSummary:
    """One metric of several training seeds of one model on the same rows.

    The interval is that of the mean over seeds, over students; the spread over seeds stands apart.
    per_user is empty: a pooled metric has no value per student.
    Raises ValueError when the seeds were scored on different rows.
    """
    value, draws = _mean(scores, metric)
    means = np.array([s.values[metric] for s in scores])
    spread = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    return SeedSummary(_interval(metric, value, draws, level), spread, means, np.zeros(0))


def compare(
    a: Scores | Sequence[Scores],
    b: Scores | Sequence[Scores],
    metric: str,
    *,
    names: tuple[str, str] = ("a", "b"),
    level: float = 0.95,
) -> Comparison:
    """Paired difference a - b over the same students: interval and two-sided p-value.

    The p-value is the share of draws that lie as far from the difference as 0 does, with 1 added
    to both counts. Several seeds of a model enter by their mean. Swapping a and b changes signs
    and nothing else.

    Raises:
      ValueError: other rows, another seed or number of resamples.
    Source: Hall and Wilson 1991 (resample the centred statistic).
    """
    a = [a] if isinstance(a, Scores) else list(a)
    b = [b] if isinstance(b, Scores) else list(b)
    _check_same([*a, *b], f"{names[0]!r} and {names[1]!r}")
    (value_a, draws_a), (value_b, draws_b) = _mean(a, metric), _mean(b, metric)
    difference, draws = value_a - value_b, draws_a - draws_b
    draws = draws[np.isfinite(draws)]
    interval = _interval("", difference, draws, level)
    if not draws.size or not np.isfinite(difference):
        return Comparison(*names, metric, interval, float("nan"), float("nan"))
    # Rounding must not decide a tie: identical models have p = 1.
    extreme = np.abs(draws - difference) >= abs(difference) - 1e-12
    p_value = float((1 + extreme.sum()) / (1 + draws.size))
    return Comparison(*names, metric, interval, p_value, p_value)


def _mean(scores, metric):
    if not scores:
        raise ValueError("No scores were given; evaluate at least one seed.")
    _check_same(scores, "the seeds of one model")
    value = float(np.mean([s.values[metric] for s in scores]))
    return value, np.mean([s.draws[metric] for s in scores], axis=0)


def _check_same(scores, what):
    keys = {(s.fingerprint, s.num_rows, s.seed, len(s.draws["AUC"])) for s in scores}
    if len(keys) > 1:
        sizes = sorted({(s.num_students, s.num_rows) for s in scores})
        raise ValueError(
            f"Paired figures of {what} need the same students, steps, true answers and resamples; "
            f"got (students, rows) {sizes}. Evaluate all of them on one split, protocol and seed."
        )
