"""Directions against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from agents_jax.tools.meco import MecoError, fit_labels, fit_pairs


def pairs(count=40, layers=2, width=10, seed=0, gap=2.0):
    """Pairs that differ along a direction of each layer, beside noise."""
    rng = np.random.default_rng(seed)
    axes = rng.standard_normal((layers, width))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    common = 3 * rng.standard_normal((count, layers, width))
    noise = 0.3 * rng.standard_normal((2, count, layers, width))
    return common + gap * axes + noise[0], common - gap * axes + noise[1], axes


@pytest.mark.parametrize("count", [7, 40])  # fewer and more pairs than dimensions
def test_pca_is_that_of_scikit_learn_on_the_shuffled_differences(count):
    positive, negative, _ = pairs(count)
    reader = fit_pairs(positive, negative, seed=3)
    # RepE's order: a random member first; the reader's generator draws the same.
    flip = np.where(np.random.default_rng(3).random(count) < 0.5, -1.0, 1.0)
    for layer in range(2):
        difference = flip[:, None] * (positive - negative)[:, layer]
        fitted = PCA(n_components=1).fit(difference - difference.mean(axis=0))
        along = abs(float(fitted.components_[0] @ reader.directions[layer]))
        assert along == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(reader.centers[layer], difference.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("method", ["pca", "mean_difference", "random"])
def test_the_positive_member_scores_higher(method):
    positive, negative, axes = pairs()
    for one, other, sign in ((positive, negative, 1), (negative, positive, -1)):
        reader = fit_pairs(one, other, method=method, seed=1)
        higher = (reader.score(one) > reader.score(other)).mean(axis=0)
        assert (higher >= 0.5).all()
        np.testing.assert_allclose(higher, reader.pair_accuracy)
        if method != "random":
            assert (higher == 1).all()
            assert (sign * np.einsum("cd,cd->c", reader.directions, axes) > 0.95).all()


def test_the_order_within_pairs_changes_little_and_never_the_sign():
    positive, negative, _ = pairs()
    first, second = (fit_pairs(positive, negative, seed=seed) for seed in (0, 1))
    assert (np.einsum("cd,cd->c", first.directions, second.directions) > 0.99).all()
    assert not np.array_equal(first.directions, second.directions)  # the mean taken away differs


def test_shifting_all_states_shifts_scores_alone():
    positive, negative, _ = pairs()
    reader, moved = fit_pairs(positive, negative), fit_pairs(positive + 5, negative + 5)
    np.testing.assert_allclose(reader.directions, moved.directions, atol=1e-5)
    shift = moved.score(positive + 5) - reader.score(positive)
    np.testing.assert_allclose(shift - shift[0], 0, atol=1e-4)


def test_logistic_is_that_of_scikit_learn_without_the_rotation():
    positive, negative, _ = pairs(12, width=40)  # more dimensions than examples
    states = np.concatenate([positive, negative])
    labels = np.arange(24) < 12
    reader = fit_labels(states, labels, regularisation=2.0)
    for layer in range(2):
        scaler = StandardScaler().fit(states[:, layer])
        z = scaler.transform(states[:, layer])
        model = LogisticRegression(C=2.0 / 40, tol=1e-8, max_iter=5000).fit(z, labels)
        expected = z @ model.coef_[0]
        found = reader.score(states)[:, layer]
        assert np.corrcoef(found, expected)[0, 1] > 0.9999
        np.testing.assert_allclose(found.mean(), 0, atol=1e-4)


def test_standardised_scores_have_mean_zero_and_deviation_one():
    positive, negative, _ = pairs()
    reader = fit_pairs(positive, negative).standardised(positive)
    scores = reader.score(positive)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=1e-6)
    again = reader.standardised(negative).score(negative)
    np.testing.assert_allclose(again.mean(axis=0), 0, atol=1e-6)


def test_states_that_do_not_differ_give_no_direction_and_no_numbers_that_are_not_finite():
    same = np.ones((4, 2, 3))
    reader = fit_pairs(same, same)
    assert np.isfinite(reader.directions).all() and np.isfinite(reader.score(same)).all()


@pytest.mark.parametrize(
    "positive, negative, match",
    [
        (np.zeros((3, 1, 2)), np.zeros((3, 1, 3)), "one shape"),
        (np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), "at least 2"),
        (np.full((3, 1, 2), np.nan), np.zeros((3, 1, 2)), "not finite"),
    ],
)
def test_what_fixes_no_direction_is_named(positive, negative, match):
    with pytest.raises(MecoError, match=match):
        fit_pairs(positive, negative)


def test_labels_of_one_kind_and_other_shapes_are_named():
    with pytest.raises(MecoError, match="same label"):
        fit_labels(np.zeros((4, 1, 2)), np.ones(4, bool))
    positive, negative, _ = pairs()
    with pytest.raises(MecoError, match="do not fit a reader of 2 layers of width 10"):
        fit_pairs(positive, negative).score(np.zeros((3, 2, 11)))
    with pytest.raises(MecoError, match="needs labels"):
        fit_pairs(positive, negative, method="logistic")
