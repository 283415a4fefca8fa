"""Losses against NumPy, the two ways of computing sampled softmax, statistical corrections."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recsys_jax.sequential import losses
from recsys_jax.sequential.losses import LossConfig, catalogue_loss, sample_items

ITEMS, DIM, T = 30, 8, 50


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    users = rng.normal(size=(T, DIM)).astype(np.float32)
    users /= np.linalg.norm(users, axis=-1, keepdims=True)
    table = rng.normal(size=(ITEMS + 3, DIM)).astype(np.float32)  # two rows of shard padding
    labels = rng.integers(0, ITEMS + 1, T).astype(np.int32)
    return users, table, labels


def normalised(table):
    return table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-6)


def numpy_sampled(users, table, labels, negatives, temperature, correction=None):
    table = normalised(table.astype(np.float64))
    total = 0.0
    for t, label in enumerate(labels):
        if label == 0:
            continue
        positive = users[t] @ table[label] / temperature
        logits = []
        for item in negatives[t]:
            logit = users[t] @ table[item] / temperature
            if correction is not None:
                logit += correction[item]
            logits.append(-5e4 if item == label else logit)
        every = np.array([positive, *logits])
        total += np.log(np.exp(every - every.max()).sum()) + every.max() - positive
    return total


@pytest.mark.parametrize("negatives", ["per_position", "per_row", "shared"])
@pytest.mark.parametrize("logq", [False, True])
def test_sampled_softmax_equals_numpy(data, negatives, logq):
    users, table, labels = data
    config = LossConfig(num_negatives=16, negatives=negatives, logq=logq)
    rng = jax.random.key(3)
    rows = (5, T // 5)
    total, weight = catalogue_loss(
        users.reshape(*rows, DIM), table, labels.reshape(rows), rng, config, ITEMS
    )
    groups = {"per_position": T, "per_row": 5, "shared": 1}[negatives]
    drawn = np.asarray(sample_items(rng, (groups, 16), ITEMS, None))
    assert drawn.min() >= 1 and drawn.max() <= ITEMS
    drawn = np.repeat(drawn, T // groups, axis=0)
    assert (drawn == labels[:, None]).any(), "no collision in this draw"
    correction = np.full(ITEMS + 3, np.log(ITEMS / 16)) if logq else None
    want = numpy_sampled(users, table, labels, drawn, 0.05, correction)
    np.testing.assert_allclose(total, want, rtol=2e-5)
    assert weight == (labels > 0).sum()


def test_gathered_rows_equal_full_logits_with_gradients(data, monkeypatch):
    users, table, labels = data
    config = LossConfig(num_negatives=16, chunk_positions=16)

    def value(users, table):
        return catalogue_loss(users, table, labels, jax.random.key(3), config, ITEMS)[0]

    full = jax.value_and_grad(value, (0, 1))(users, table)
    monkeypatch.setattr(losses, "_FULL_LOGITS_LIMIT", 0)
    gathered = jax.value_and_grad(value, (0, 1))(users, table)
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(gathered), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_full_softmax_equals_numpy_and_ignores_padding_rows(data):
    users, table, labels = data
    config = LossConfig(kind="full_softmax", temperature=0.1)
    total, _ = catalogue_loss(users, table, labels, jax.random.key(0), config, ITEMS)
    logits = users.astype(np.float64) @ normalised(table.astype(np.float64))[1 : ITEMS + 1].T / 0.1
    lse = np.log(np.exp(logits).sum(-1))
    want = sum(lse[t] - logits[t, y - 1] for t, y in enumerate(labels) if y)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    gradient = jax.grad(
        lambda e: catalogue_loss(users, e, labels, jax.random.key(0), config, ITEMS)[0]
    )(table)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_array_equal(gradient[ITEMS + 1 :], 0)


def test_bpr_equals_numpy(data):
    users, table, labels = data
    config = LossConfig(kind="bpr", temperature=1.0, item_l2_norm=False)
    rng = jax.random.key(9)
    total, _ = catalogue_loss(users, table, labels, rng, config, ITEMS)
    negatives = np.asarray(sample_items(rng, (T, 1), ITEMS, None))[:, 0]
    margin = (users * (table[labels] - table[negatives])).sum(-1).astype(np.float64)
    # A negative equal to the positive counts as absent (loss ~ 0), as in sampled softmax.
    per = np.where(negatives == labels, 0.0, np.log1p(np.exp(-margin)))
    np.testing.assert_allclose(total, per[labels > 0].sum(), rtol=1e-4)


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_logq_makes_the_partition_estimate_unbiased(data, distribution):
    """Mean over draws of sum(exp(corrected logits)) is the sum over the catalogue."""
    users, table, _ = data
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(ITEMS, 2.0)).astype(np.float32)
    cumulative = jnp.cumsum(probabilities) if distribution == "popularity" else None
    q = probabilities if distribution == "popularity" else np.full(ITEMS, 1 / ITEMS)
    scores = np.exp(users[0] @ normalised(table).T)
    drawn = np.asarray(sample_items(jax.random.key(0), (20_000, 8), ITEMS, cumulative))
    estimate = (scores[drawn] / (8 * q[drawn - 1])).sum(-1)
    standard_error = estimate.std() / np.sqrt(len(estimate))
    assert abs(estimate.mean() - scores[1 : ITEMS + 1].sum()) < 4 * standard_error


def test_sampler_is_uniform_over_the_catalogue():
    drawn = np.asarray(sample_items(jax.random.key(2), (300_000,), ITEMS, None))
    counts = np.bincount(drawn, minlength=ITEMS + 1)[1:]
    expected = len(drawn) / ITEMS
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 60  # 29 degrees of freedom: p < 0.001 above 58.3


def test_popularity_sampling_needs_counts(data):
    users, table, labels = data
    config = LossConfig(distribution="popularity")
    with pytest.raises(ValueError, match="popularity.*training counts"):
        catalogue_loss(users, table, labels, jax.random.key(0), config, ITEMS)


def test_config_mistakes_are_named():
    with pytest.raises(ValueError, match="loss.kind='softmax' is not one of sampled_softmax"):
        LossConfig(kind="softmax")
    with pytest.raises(ValueError, match="temperature=0.0 must be positive"):
        LossConfig(temperature=0.0)
