"""Metrics against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import ndcg_score

from recsys_jax.evaluation import metrics
from recsys_jax.evaluation.ranking import NOT_RANKED

RANKS = hnp.arrays(np.int32, st.integers(1, 40), elements=st.integers(1, 80))


def scores_of(ranks, items=100):
    """A score matrix [U, items] in which item 0 of user u has rank ranks[u], without ties."""
    scores = np.tile(-np.arange(1, items, dtype=float), (len(ranks), 1))
    return np.concatenate([-(np.asarray(ranks)[:, None] - 0.5), scores], axis=1)


@pytest.mark.parametrize("k", [1, 5, 10, 50])
def test_ndcg_equals_scikit_learn(k):
    ranks = np.array([1, 2, 3, 5, 6, 10, 11, 50, 51, 99])
    scores = scores_of(ranks)
    truth = np.zeros_like(scores)
    truth[:, 0] = 1
    mine = metrics.rank_metrics(ranks, [k])[f"NDCG@{k}"]
    one_by_one = [ndcg_score(t[None], s[None], k=k) for t, s in zip(truth, scores, strict=True)]
    np.testing.assert_allclose(mine, one_by_one, rtol=1e-12)


@given(RANKS)
def test_hit_rate_and_mrr_by_definition(ranks):
    got = metrics.rank_metrics(ranks, [5, 10])
    assert got["HR@5"].tolist() == [float(r <= 5) for r in ranks]
    np.testing.assert_allclose(got["MRR@10"], [1 / r if r <= 10 else 0 for r in ranks])
    np.testing.assert_allclose(got["MRR"], [1 / r for r in ranks])


@given(RANKS, st.integers(1, 60))
def test_metrics_grow_with_k_and_with_better_ranks(ranks, k):
    got = metrics.rank_metrics(ranks, [k, k + 1])
    better = metrics.rank_metrics(np.maximum(ranks - 1, 1), [k])
    for name in ("NDCG", "HR", "MRR"):
        assert (got[f"{name}@{k}"] <= got[f"{name}@{k + 1}"]).all()
        assert (got[f"{name}@{k}"] <= better[f"{name}@{k}"]).all()
        assert (got[f"{name}@{k}"] <= got[f"HR@{k}"]).all()


def test_official_rank_limit():
    """A target outside the top 2500 has rank 2501 and adds 1/2501 to MRR."""
    ranks = np.array([1, 2500, 2501, 30000, NOT_RANKED])
    got = metrics.rank_metrics(ranks, [10], rank_limit=metrics.OFFICIAL_RANK_LIMIT)
    np.testing.assert_allclose(got["MRR"], [1, 1 / 2500, 1 / 2501, 1 / 2501, 1 / 2501])
    assert metrics.rank_metrics(ranks, [50])["MRR"][-1] < 1e-9
    assert metrics.rank_metrics(ranks, [50])["HR@50"][-1] == 0


@pytest.mark.parametrize("k", [1, 3, 10])
def test_several_targets_equal_scikit_learn(k):
    rng = np.random.default_rng(k)
    users, items = 30, 40
    scores = rng.standard_normal((users, items))
    order = np.argsort(-scores, axis=1)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(1, items + 1)[None].repeat(users, 0), axis=1)
    relevant = rng.random((users, items)) < 0.1
    relevant[:, 0] = True
    ranks = np.where(relevant, place, 0)
    got = metrics.multi_target_metrics(ranks, [k])
    top = np.take_along_axis(relevant, order[:, :k], axis=1)
    for u in range(users):
        want = ndcg_score(relevant[u][None].astype(float), scores[u][None], k=k)
        assert got[f"NDCG@{k}"][u] == pytest.approx(want)
    np.testing.assert_allclose(got[f"Recall@{k}"], top.sum(1) / relevant.sum(1))
    np.testing.assert_allclose(got[f"Precision@{k}"], top.mean(1))
    np.testing.assert_array_equal(got[f"HR@{k}"], top.any(1))
    from_lists = metrics.ranks_from_topk(order[:, :k] + 1, np.where(relevant, np.arange(1, 41), 0))
    np.testing.assert_array_equal(from_lists, np.where(relevant, np.minimum(place, k + 1), 0))


@given(RANKS)
def test_one_target_is_a_special_case_of_several(ranks):
    single = metrics.rank_metrics(ranks, [1, 7])
    several = metrics.multi_target_metrics(np.pad(ranks[:, None], ((0, 0), (1, 2))), [1, 7])
    for k in (1, 7):
        for name, other in (("NDCG", "NDCG"), ("HR", "Recall"), ("HR", "HR"), ("MRR", "MRR")):
            np.testing.assert_allclose(single[f"{name}@{k}"], several[f"{other}@{k}"], rtol=1e-15)


def test_coverage_counts_and_gini():
    lists = np.array([[1, 2], [1, 0], [1, 4]])
    counts = metrics.recommendation_counts(lists, 4)
    assert counts.tolist() == [0, 3, 1, 0, 1]
    assert metrics.coverage(counts) == 0.75
    x = np.array([3, 1, 0, 1], float)
    pairs = np.abs(x[:, None] - x).sum() / (2 * 16 * x.mean())  # Gini as mean difference
    assert metrics.gini(counts) == pytest.approx(pairs)
    assert metrics.gini(np.full(9, 5)) == pytest.approx(0)
    assert metrics.gini([0, 0, 0, 0, 7]) == pytest.approx(0.75)
    assert np.isnan(metrics.gini(np.zeros(5)))
    with pytest.raises(ValueError, match="above num_items=3"):
        metrics.recommendation_counts(lists, 3)


def test_popularity_percentile_and_list_means():
    got = metrics.popularity_percentile([99, 10, 0, 10, 500])
    np.testing.assert_allclose(got, [0, 0.625, 0.25, 0.625, 1.0])
    means = metrics.mean_over_lists([0, 1.0, 2.0, 4.0], [[1, 3, 0], [0, 0, 0], [2, 2, 2]])
    np.testing.assert_allclose(means, [2.5, np.nan, 2.0])


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: metrics.rank_metrics([1, 0]), "Ranks start at 1, got 0"),
        (lambda: metrics.rank_metrics([[1]]), "multi_target_metrics"),
        (lambda: metrics.rank_metrics([1], [0]), "positive integers"),
        (lambda: metrics.rank_metrics([1], []), "positive integers"),
        (lambda: metrics.rank_metrics([1], rank_limit=0), "rank_limit=0"),
        (lambda: metrics.multi_target_metrics([[1, 2], [0, 0]]), "row 1 has no target"),
        (lambda: metrics.multi_target_metrics([[3, 3]]), "share a rank"),
        (lambda: metrics.ranks_from_topk([[1]], [1]), "the same U"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
