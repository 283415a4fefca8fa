"""Reading directions out of hidden states, one per layer, and scores along them.

RepE's recipe (Zou et al., 2023, arXiv 2310.01405; behaviour of its reference code): differences of
pairs in random order, their mean taken away, first principal component, sign by which member of a
pair projects higher. MeCo uses it on meta-cognition contrasts. Other readers are for comparison.

Letters: N examples, P pairs, C layers, D hidden width.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from agents_jax.tools.meco.errors import MecoError

Method = Literal["pca", "mean_difference", "logistic", "random"]
METHODS = ("pca", "mean_difference", "logistic", "random")


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Directions of unit length and what is taken away before projecting.

    directions, centers: float32 [C, D]; the sign is in the direction. offset, scale: float64 [C]
    standardise scores, so that those of different layers compare; 0 and 1 leave them as they are.
    pair_accuracy: float64 [C], how often the positive member of a pair scores higher, on the pairs
    fitted; NaN where there were none.
    """

    directions: np.ndarray
    centers: np.ndarray
    offset: np.ndarray
    scale: np.ndarray
    pair_accuracy: np.ndarray

    def score(self, states: np.ndarray) -> np.ndarray:
        """Scores float64 [N, C] of hidden states [N, C, D]."""
        states = np.asarray(states, np.float64)
        if states.ndim != 3 or states.shape[1:] != self.directions.shape:
            raise MecoError(
                f"hidden states of shape {states.shape} do not fit a reader of "
                f"{self.directions.shape[0]} layers of width {self.directions.shape[1]}."
            )
        raw = np.einsum("ncd,cd->nc", states - self.centers, self.directions)
        return (raw - self.offset) / self.scale

    def standardised(self, states: np.ndarray) -> Reader:
        """The reader whose scores of `states` [N, C, D] have mean 0 and deviation 1."""
        plain = dataclasses.replace(
            self, offset=np.zeros_like(self.offset), scale=np.ones_like(self.scale)
        )
        scores = plain.score(states)
        spread = scores.std(axis=0)
        return dataclasses.replace(
            self, offset=scores.mean(axis=0), scale=np.where(spread > 0, spread, 1.0)
        )


def _reader(directions: np.ndarray, centers: np.ndarray, accuracy: np.ndarray | None = None):
    norms = np.linalg.norm(directions, axis=-1, keepdims=True)
    layers = len(directions)
    return Reader(
        (directions / np.where(norms > 0, norms, 1)).astype(np.float32),
        centers.astype(np.float32),
        np.zeros(layers),
        np.ones(layers),
        np.full(layers, np.nan) if accuracy is None else accuracy,
    )


def fit_pairs(
    positive: np.ndarray, negative: np.ndarray, *, method: Method = "pca", seed: int = 0
) -> Reader:
    """A reader from pairs.

    Args:
      positive, negative: hidden states [P, C, D] of the members of each pair.
      method: 'pca' (RepE's), 'mean_difference', or 'random' (a control; sign by the pairs).
      seed: order within pairs, and the random direction.

    Raises:
      MecoError: fewer than two pairs, shapes that differ, states that are not finite.
    """
    positive, negative = _checked(positive, negative)
    count, layers, width = positive.shape
    difference = positive - negative
    rng = np.random.default_rng(seed)
    # The order within a pair is random, as RepE shuffles it, so the differences have random sign.
    flip = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    mean = (flip[:, None, None] * difference).mean(axis=0)
    if method == "mean_difference":
        directions = difference.mean(axis=0)
        mean = np.zeros_like(mean)
    elif method == "random":
        directions = rng.standard_normal((layers, width))
    elif method == "pca":
        directions = np.stack(
            [_first_component(flip[:, None] * difference[:, c] - mean[c]) for c in range(layers)]
        )
    else:
        raise MecoError(f"method {method!r} needs labels, not pairs; allowed: {', '.join(METHODS)}")
    along = np.einsum("pcd,cd->pc", difference, directions)
    votes = np.sign(along).sum(axis=0)
    directions = np.where(votes < 0, -1.0, 1.0)[:, None] * directions  # a tie: +1, as RepE's
    along = along * np.where(votes < 0, -1.0, 1.0)
    return _reader(directions, mean, (along > 0).mean(axis=0))


def _first_component(centred: np.ndarray) -> np.ndarray:
    """First principal component [D] of centred rows [P, D], in float64."""
    if len(centred) < centred.shape[1]:  # the smaller Gram matrix has the same spectrum
        values, vectors = np.linalg.eigh(centred @ centred.T)
        if values[-1] <= 0:
            return np.zeros(centred.shape[1])
        return centred.T @ vectors[:, -1] / np.sqrt(values[-1])
    return np.linalg.svd(centred, full_matrices=False)[2][0]


def fit_labels(
    states: np.ndarray, labels: np.ndarray, *, method: Method = "logistic", seed: int = 0,
    regularisation: float = 1.0,
) -> Reader:  # fmt: skip
    """A reader from labelled examples: a supervised probe.

    Args:
      states: [N, C, D]. labels: bool [N].
      method: 'logistic' (L2, on standardised features), 'mean_difference' of the classes, 'pca' on
        differences of randomly paired examples of both labels, or 'random'.
      regularisation: inverse strength C of the logistic regression's penalty.

    Raises:
      MecoError: one label only, or what `fit_pairs` refuses.
    """
    states, labels = np.asarray(states, np.float64), np.asarray(labels, bool)
    if labels.all() or not labels.any():
        raise MecoError(f"the {len(labels)} examples to fit a probe on all have the same label.")
    if method == "logistic":
        return _fit_logistic(states, labels, regularisation)
    positive, negative = states[labels], states[~labels]
    if method == "mean_difference":
        means = positive.mean(axis=0), negative.mean(axis=0)
        return _reader(means[0] - means[1], (means[0] + means[1]) / 2)
    rng = np.random.default_rng(seed)
    count = min(len(positive), len(negative))
    positive = positive[rng.permutation(len(positive))[:count]]
    negative = negative[rng.permutation(len(negative))[:count]]
    return fit_pairs(positive, negative, method=method, seed=seed)


def _fit_logistic(states: np.ndarray, labels: np.ndarray, regularisation: float) -> Reader:
    from sklearn.linear_model import LogisticRegression

    directions, centers = [], []
    for layer in range(states.shape[1]):
        x = states[:, layer]
        mean, spread = x.mean(axis=0), x.std(axis=0)
        spread = np.where(spread > 1e-8, spread, 1)
        z = (x - mean) / spread
        # The penalised solution lies in the span of the rows, so a rotation to it loses nothing.
        _, values, basis = np.linalg.svd(z, full_matrices=False)
        basis = basis[values > values[0] * 1e-6]
        model = LogisticRegression(C=regularisation / z.shape[1], max_iter=300)
        weights = model.fit(z @ basis.T, labels).coef_[0] @ basis
        directions.append(weights / spread)
        centers.append(mean)
    return _reader(np.stack(directions), np.stack(centers))


def _checked(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positive, negative = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    if positive.shape != negative.shape or positive.ndim != 3:
        raise MecoError(
            f"pairs need hidden states of one shape [pairs, layers, width]; got {positive.shape} "
            f"and {negative.shape}."
        )
    if len(positive) < 2:
        raise MecoError(f"{len(positive)} pair(s) fix no direction; at least 2 are needed.")
    if not np.isfinite(positive).all() or not np.isfinite(negative).all():
        raise MecoError("hidden states hold numbers that are not finite.")
    return positive, negative
