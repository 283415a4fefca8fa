"""Subsets in which text alone does not give the label away: matching by propensity ('ours').

A classifier of text features predicts each example's label from folds without it; examples of both
labels are then paired where these predictions are alike, and the rest is left out. What a control
can see is then distributed alike under both labels, as in a matched observational study
(Rosenbaum and Rubin, 1983).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from agents_jax.tools.meco import texts
from agents_jax.tools.meco.controls import CONTROLS, fit_control
from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.examples import ExampleSet, assign_folds, rotations

_BIG = 1e6


def propensities(data: ExampleSet, *, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Standardised scores of each control for each example from folds without it, float64
    [num_examples, num_controls].
    """
    examples = data.examples
    scores = np.zeros((len(examples), len(CONTROLS)))
    for roles in rotations(assign_folds(examples, folds, seed)):
        fit = np.concatenate([roles.fit, roles.validation])
        test = [examples[i] for i in roles.test]
        for column, name in enumerate(CONTROLS):
            values = fit_control(name, [examples[i] for i in fit])(test)
            scores[roles.test, column] = values
    spread = scores.std(axis=0)
    return (scores - scores.mean(axis=0)) / np.where(spread > 0, spread, 1)


def matched(
    data: ExampleSet, *, caliper: float = 0.25, seed: int = 0, rounds: int = 2
) -> ExampleSet:
    """The pairs of one example of each label that text features tell apart least.

    Pairs are chosen by minimum total distance (assignment problem) over the standardised
    propensities, length of the query and overlap; pairs further apart than the caliper in the mean
    over features are dropped. Rounds repeat it with classifiers fitted on what is left.

    Args:
      caliper: greatest mean absolute distance of a pair, in standard deviations.

    Raises:
      MecoError: nothing is left.
    """
    for _ in range(rounds):
        raw = np.hstack(
            [texts.lengths(data.examples), texts.overlaps(data.examples)]
        )  # fmt: skip
        spread = raw.std(axis=0)
        raw = (raw - raw.mean(axis=0)) / np.where(spread > 0, spread, 1)
        features = np.hstack([propensities(data, seed=seed), raw])
        labels = data.labels
        positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
        distance = np.abs(features[positive][:, None] - features[negative][None]).mean(axis=-1)
        cost = np.where(distance <= caliper, distance, _BIG)
        rows, columns = linear_sum_assignment(cost)
        kept = cost[rows, columns] < _BIG
        pairs = np.concatenate([positive[rows[kept]], negative[columns[kept]]])
        if len(pairs) < 2 * 5:
            raise MecoError(
                f"data set {data.name!r}: with caliper={caliper} only {len(pairs) // 2} pairs are "
                f"alike in text; widen matching.caliper or take more examples ({len(data)} now)."
            )
        data = data.only(sorted(pairs))
    return data
