"""Intervals and tests against scipy and by exact enumeration."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from recsys_jax.evaluation import intervals

RNG = np.random.default_rng(0)
FEW = np.where(RNG.random(400) < 0.2, 1 / np.log2(RNG.integers(2, 12, 400)), 0.0)  # like NDCG@10
MANY = RNG.exponential(size=150)


@pytest.mark.parametrize("values", [FEW, MANY], ids=["few distinct", "all distinct"])
@pytest.mark.parametrize("method", intervals.METHODS)
def test_equals_scipy_bootstrap(values, method):
    mine = intervals.mean_interval(values, method=method, num_resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method=method, n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert mine.mean == pytest.approx(values.mean())
    # Both are random: the quantiles of 20,000 draws move by about 1 % of the width.
    assert mine.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert mine.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_both_ways_of_resampling_have_one_distribution():
    """Counts of distinct values against drawn users (made distinct by a negligible shift)."""
    by_counts = intervals.bootstrap_means(FEW, num_resamples=20_000, seed=1)
    by_users = intervals.bootstrap_means(
        FEW + 1e-12 * np.arange(FEW.size), num_resamples=20_000, seed=2
    )
    assert by_counts.std() == pytest.approx(FEW.std() / np.sqrt(FEW.size), rel=0.03)
    assert by_users.std() == pytest.approx(by_counts.std(), rel=0.03)
    assert by_users.mean() == pytest.approx(by_counts.mean(), abs=by_counts.std() * 0.05)


def test_interval_covers_the_truth():
    """95 % intervals of 200 samples with a known mean: coverage within 6 standard errors."""
    rng = np.random.default_rng(3)
    truth, hits, trials = 0.3, 0, 200
    for i in range(trials):
        sample = (rng.random(300) < truth).astype(float)
        interval = intervals.mean_interval(sample, num_resamples=500, seed=i)
        hits += interval.low <= truth <= interval.high
    assert abs(hits / trials - 0.95) < 6 * np.sqrt(0.95 * 0.05 / trials)


def test_seeded_constant_and_undefined_values():
    a = intervals.mean_interval(FEW, seed=5)
    assert a == intervals.mean_interval(FEW, seed=5) != intervals.mean_interval(FEW, seed=6)
    assert a == intervals.mean_interval(np.append(FEW, np.nan), seed=5)
    assert intervals.mean_interval([0.0] * 9) == intervals.Interval(0.0, 0.0, 0.0)
    assert str(intervals.Interval(0.5, 0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"


def test_memory_is_bounded_for_many_users():
    values = np.random.default_rng(0).random(100_000)  # all distinct: the costly way
    tracemalloc.start()
    intervals.bootstrap_means(values, num_resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6 < 200 * values.nbytes


@pytest.mark.parametrize("method", intervals.METHODS)
def test_intervals_have_the_scale_of_the_values(method):
    unit = intervals.mean_interval(FEW, method=method)
    for exponent in (-900, -300, 300):  # 2**-900 squared is 0 in float64
        scaled = intervals.mean_interval(FEW * 2.0**exponent, method=method)
        for name in ("mean", "low", "high"):
            assert getattr(scaled, name) / 2.0**exponent == pytest.approx(getattr(unit, name))


@example([0.0, 2.8671660781954417e-282], "bca")
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.sampled_from(intervals.METHODS))
def test_order_of_users_and_level(values, method):
    options = dict(method=method, num_resamples=200)
    wide = intervals.mean_interval(values, **options)
    narrow = intervals.mean_interval(values[::-1], level=0.5, **options)
    slack = 1e-9
    assert wide.low - slack <= narrow.low <= narrow.high <= wide.high + slack
    assert narrow.mean == pytest.approx(wide.mean)


def exact_sign_flip(differences):
    observed = abs(sum(differences)) - 1e-12
    flips = itertools.product([-1, 1], repeat=len(differences))
    return np.mean([abs(np.dot(f, differences)) >= observed for f in flips])


@pytest.mark.parametrize(
    "differences",
    [[1, 1, 1, -1, 0, 0, 1, 1], [0.3, 0.7, -0.2, 0.9, 1.1, 0.4], [0.1] * 3 + [-0.3, 0.2, 0.5]],
)
def test_sign_flip_equals_enumeration_and_scipy(differences):
    a, b = np.array(differences, float), np.zeros(len(differences))
    mine = intervals.paired_test(a, b, num_resamples=40_000).p_value
    exact = exact_sign_flip(differences)
    assert mine == pytest.approx(exact, abs=5 * np.sqrt(0.25 / 40_000))
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    )  # fmt: skip
    assert theirs.pvalue == pytest.approx(exact)


def test_paired_test_sees_what_intervals_of_means_hide():
    rng = np.random.default_rng(0)
    base = (rng.random(2000) < 0.2).astype(float)
    better = base.copy()
    better[rng.choice(np.flatnonzero(base == 0), 30, replace=False)] = 1
    found = intervals.paired_test(better, base, names=("new", "old"), metric="HR@10")
    assert found.p_value < 0.001 and found.difference.low > 0
    assert found.difference.mean == pytest.approx(0.015)
    overlap = intervals.mean_interval(base).high > intervals.mean_interval(better).low
    assert overlap
    same = intervals.paired_test(base, base)
    assert same.p_value == 1.0 and same.difference.low == same.difference.high == 0.0


def test_p_value_is_uniform_under_the_null():
    rng = np.random.default_rng(4)
    p = [
        intervals.paired_test(*rng.standard_normal((2, 60)), num_resamples=199, seed=i).p_value
        for i in range(200)
    ]
    assert abs(np.mean(np.array(p) <= 0.1) - 0.1) < 6 * np.sqrt(0.1 * 0.9 / 200)


def test_holm_by_hand():
    np.testing.assert_allclose(intervals.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(intervals.holm([0.9, 0.8]), [1, 1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_keeps_order_and_lies_between_raw_and_bonferroni(p):
    adjusted = intervals.holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_compare_models():
    rng = np.random.default_rng(0)
    values = {"a": rng.random(300) + 0.3, "b": rng.random(300), "c": rng.random(300)}
    tests = intervals.compare_models(values, metric="NDCG@10")
    assert [(t.a, t.b) for t in tests] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [t.significant() for t in tests] == [True, True, False]
    np.testing.assert_allclose(
        [t.p_adjusted for t in tests], intervals.holm([t.p_value for t in tests])
    )
    against = intervals.compare_models(values, reference="b")
    assert [(t.a, t.b) for t in against] == [("b", "a"), ("b", "c")]
    with pytest.raises(ValueError, match="different users"):
        intervals.compare_models(values, users={"a": [1], "b": [2], "c": [1]})
    with pytest.raises(ValueError, match="reference='x'"):
        intervals.compare_models(values, reference="x")


def test_seeds_are_averaged_per_user_and_their_spread_is_apart():
    rng = np.random.default_rng(0)
    per_seed = [rng.random(500) + shift for shift in (0.0, 0.1, 0.2)]
    got = intervals.aggregate_seeds(per_seed)
    np.testing.assert_allclose(got.seed_means, [x.mean() for x in per_seed])
    assert got.std_over_seeds == pytest.approx(np.std([x.mean() for x in per_seed], ddof=1))
    assert got.interval == intervals.mean_interval(np.mean(per_seed, axis=0))
    assert np.isnan(intervals.aggregate_seeds(per_seed[:1]).std_over_seeds)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: intervals.mean_interval([1, 2], method="magic"), "allowed are bca, percentile"),
        (lambda: intervals.mean_interval([1, 2], level=95), "level=95 must lie between 0 and 1"),
        (lambda: intervals.mean_interval([]), "at least one user"),
        (lambda: intervals.mean_interval([1, np.inf]), "must be finite"),
        (lambda: intervals.paired_test([1, 2], [1]), "same users for both"),
        (lambda: intervals.aggregate_seeds([[1, 2], [1]]), "the same users"),
        (lambda: intervals.aggregate_seeds([]), "the same users"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
