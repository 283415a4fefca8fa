"""From scores to decisions: MeCo's dual thresholds, and one threshold for everything else.

The paper says that l_yes is used where the model's first token is Yes and l_no where it is No, that
both are found on validation data and that a crossing overrides the answer. Inequality, objective
and search are not stated; what is here is a reconstruction ('ours' in detail).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from agents_jax.tools.meco.errors import MecoError

Orientation = Literal["A", "B"]
ORIENTATIONS = ("A", "B")


@dataclasses.dataclass(frozen=True)
class DualThreshold:
    """Yes is turned into No where s < l_yes. No is turned into Yes where s > l_no (orientation B:
    the score is an axis of need) or where s < l_no (A: the score is confidence in the answer).

    An infinite threshold turns nothing. validation_accuracy: at the thresholds, on what they were
    fitted on.
    """

    l_yes: float = -math.inf
    l_no: float = math.inf
    orientation: Orientation = "B"
    validation_accuracy: float = math.nan

    def __post_init__(self):
        if self.orientation not in ORIENTATIONS:
            raise MecoError(f"orientation={self.orientation!r} is unknown; allowed: A, B.")

    def decide(self, scores: np.ndarray, yes: np.ndarray) -> np.ndarray:
        """Whether a tool is called, bool [num_examples].

        Args:
          scores: float [num_examples]. yes: the model's own answers, bool [num_examples].
        """
        scores, yes = np.asarray(scores, np.float64), np.asarray(yes, bool)
        crossed = scores > self.l_no if self.orientation == "B" else scores < self.l_no
        return np.where(yes, scores >= self.l_yes, crossed)


def fit_dual(
    scores: np.ndarray, yes: np.ndarray, needed: np.ndarray, *,
    orientation: Orientation = "B", min_count: int = 20,
) -> DualThreshold:  # fmt: skip
    """The thresholds of best accuracy on validation examples.

    Candidates are the midpoints between neighbouring distinct scores of the examples with that
    answer, and the infinities. Among equals the one that turns fewest answers wins, so that a tie
    turns none.

    Args:
      scores, yes, needed: [num_examples]; scores finite.
      min_count: an answer that fewer examples have is left as it is.

    Raises:
      MecoError: scores that are not finite, arrays of unlike length, or none at all.
    """
    scores = np.asarray(scores, np.float64)
    yes, needed = np.asarray(yes, bool), np.asarray(needed, bool)
    if not len(scores) == len(yes) == len(needed) or not len(scores):
        raise MecoError(
            f"{len(scores)} scores, {len(yes)} answers, {len(needed)} labels: equally many, and at "
            "least one, are needed to fit thresholds."
        )
    if not np.isfinite(scores).all():
        raise MecoError("scores to fit thresholds on must be finite numbers.")
    off_no = math.inf if orientation == "B" else -math.inf
    l_yes = _best_cut(scores[yes], needed[yes], below=True, min_count=min_count, off=-math.inf)
    l_no = _best_cut(
        scores[~yes], ~needed[~yes], below=orientation == "A", min_count=min_count, off=off_no
    )
    rule = DualThreshold(l_yes, l_no, orientation)
    return dataclasses.replace(
        rule, validation_accuracy=float(np.mean(rule.decide(scores, yes) == needed))
    )


def _best_cut(
    scores: np.ndarray, keeps: np.ndarray, *, below: bool, min_count: int, off: float
) -> float:
    """Threshold that turns the answers on one side of it; `keeps` says which are right unturned."""
    if len(scores) < max(min_count, 1):
        return off
    order = np.argsort(scores if below else -scores, kind="stable")
    values, right = scores[order], keeps[order]
    # correct[i]: the first i, in the order in which they would be turned, are turned.
    turned = np.concatenate([[0], np.cumsum(~right)])
    kept = np.concatenate([[right.sum()], right.sum() - np.cumsum(right)])
    correct = turned + kept
    cut = np.concatenate([[True], values[1:] != values[:-1], [True]])  # never between equals
    best = int(np.flatnonzero(cut & (correct == correct[cut].max()))[0])
    if best == 0:
        return off
    if best == len(values):
        return math.inf if below else -math.inf
    middle = (values[best - 1] + values[best]) / 2
    # Rounding may put the midpoint of neighbouring floats on the side where it would move one.
    inside = values[best - 1] < middle if below else values[best - 1] > middle
    return float(middle if inside else values[best])


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A call where score > threshold."""

    threshold: float
    validation_accuracy: float = math.nan

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Whether a tool is called, bool [num_examples]."""
        return np.asarray(scores, np.float64) > self.threshold


def fit_threshold(scores: np.ndarray, needed: np.ndarray) -> Threshold:
    """The threshold of best accuracy on validation examples; among equals the middle one.

    Raises:
      MecoError: as `fit_dual`.
    """
    scores, needed = np.asarray(scores, np.float64), np.asarray(needed, bool)
    if len(scores) != len(needed) or not len(scores) or not np.isfinite(scores).all():
        raise MecoError("a threshold needs as many finite scores as labels, and at least one.")
    values = np.unique(scores)
    cuts = np.concatenate([[-math.inf], (values[:-1] + values[1:]) / 2, [math.inf]])
    accuracy = [np.mean((scores > cut) == needed) for cut in cuts]
    best = np.flatnonzero(accuracy == np.max(accuracy))
    chosen = int(best[len(best) // 2])
    return Threshold(float(cuts[chosen]), float(accuracy[chosen]))
