"""Whether simulated answers look like real ones: rates per question and position, mode collapse.

Letters: N rows, G groups (questions or positions), S students, R resamples.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse

from recsys_jax.tracing.evaluation.bootstrap import resample_students
from recsys_jax.tracing.evaluation.rows import Rows

GROUPINGS = {"question": "question", "position": "step"}
_GROUP_CHUNK = 2048


@dataclasses.dataclass(frozen=True)
class Marginals:
    """Rates of right answers in each group, all [G], groups ascending.

    group: question, or step from 0. count: rows. true: share of right answers. predicted: mean
    probability, which is the rate of sampled answers. answered: share of predictions of .5 or more,
    the rate of thresholded answers. low, high: 95 % interval over students of predicted - true.
    """

    group: np.ndarray
    count: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    answered: np.ndarray
    low: np.ndarray
    high: np.ndarray


def response_marginals(
    rows: Rows, by: str = "question", *, num_resamples: int = 300, seed: int = 0
) -> Marginals:
    """Rates per question or position with intervals over students.

    A group in which a resample has no rows is left out of that resample.
    Raises ValueError for another grouping.
    """
    if by not in GROUPINGS:
        raise ValueError(f"by={by!r} is unknown; allowed are {', '.join(GROUPINGS)}.")
    group, index = np.unique(getattr(rows, GROUPINGS[by]), return_inverse=True)
    students, student = np.unique(rows.student, return_inverse=True)
    p = rows.probability.astype(np.float64)
    count = np.bincount(index, minlength=group.size)

    def rate(values):
        return np.bincount(index, values, group.size) / np.maximum(count, 1)

    shape = (students.size, group.size)
    number = sparse.csc_matrix((np.ones(len(rows)), (student, index)), shape)
    gap = sparse.csc_matrix((p - rows.response, (student, index)), shape)
    low, high = np.full(group.size, np.nan), np.full(group.size, np.nan)
    for begin in range(0, group.size, _GROUP_CHUNK):
        part = slice(begin, begin + _GROUP_CHUNK)
        means = []
        # Drawn again for each chunk: neither all weights nor all groups are held at once.
        for weights in resample_students(students.size, num_resamples, seed):
            drawn = (number[:, part].T @ weights.T).T
            total = (gap[:, part].T @ weights.T).T
            means.append(np.divide(total, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0))
        means = np.concatenate(means)
        # A question of very few students may be in no resample at all.
        seen = np.isfinite(means).any(0)
        bounds = np.nanquantile(means[:, seen], [0.025, 0.975], axis=0)
        low[part][seen], high[part][seen] = bounds
    return Marginals(group, count, rate(rows.response), rate(p), rate(p >= 0.5), low, high)


@dataclasses.dataclass(frozen=True)
class Collapse:
    """Signs that a model answers alike whoever and whatever is asked.

    true_rate, predicted_rate, answered_rate: shares of right answers: real, sampled, thresholded.
    question_gap, position_gap: mean over rows of |predicted - true| rate of their group.
    student_spread: standard deviation over students of the mean prediction, over that of the real
    share of right answers; noise alone makes the real one larger, so well below 1 is usual, and
    near 0 says that students are not told apart.
    """

    true_rate: float
    predicted_rate: float
    answered_rate: float
    question_gap: float
    position_gap: float
    student_spread: float

    @property
    def collapsed(self) -> bool:
        """Thresholded answers are nearly all one (99 %) though the real ones are not (95 %)."""
        one_sided = min(self.answered_rate, 1 - self.answered_rate) <= 0.01
        return one_sided and min(self.true_rate, 1 - self.true_rate) > 0.05


def collapse(rows: Rows) -> Collapse:
    """The summary of both marginals; every figure is NaN on no rows."""
    if not len(rows):
        return Collapse(*[float("nan")] * 6)
    p, r = rows.probability.astype(np.float64), rows.response.astype(np.float64)
    _, student = np.unique(rows.student, return_inverse=True)
    count = np.bincount(student)
    of_students = [(np.bincount(student, x) / count).std() for x in (p, r)]
    spread = of_students[0] / of_students[1] if of_students[1] > 0 else float("nan")
    gaps = []
    for column in (rows.question, rows.step):
        _, index = np.unique(column, return_inverse=True)
        gaps.append(float(np.abs(np.bincount(index, p - r)).sum() / len(rows)))
    return Collapse(
        float(r.mean()), float(p.mean()), float((p >= 0.5).mean()), *gaps, float(spread)
    )
