"""Intervals over students: by brute force, their coverage, paired differences, seeds."""

import numpy as np
import pytest
from scipy import special

from recsys_jax.tracing.evaluation import bootstrap, metrics
from recsys_jax.tracing.evaluation.rows import Rows


def world(rng, students=40, steps=12, noise=0.0, ties=None):
    """Answers of students of differing ability, and predictions that know a part of it."""
    ability = rng.normal(0, 1, students)[:, None] + rng.normal(0, 1, (students, steps))
    response = rng.random((students, steps)) < special.expit(ability)
    p = special.expit(ability + noise * rng.normal(size=ability.shape))
    if ties:
        p = np.round(p * ties) / ties
    student = np.repeat(np.arange(students), steps)
    return Rows(
        student.astype(np.int32),
        np.tile(np.arange(steps), students).astype(np.int32),
        np.ones(student.size, np.int32),
        p.reshape(-1).astype(np.float32),
        response.reshape(-1).astype(np.int8),
        np.tile(np.arange(1, steps + 1), students).astype(np.int32),
    )


def by_hand(rows, weights):
    """Metrics of a resample that is written out row by row."""
    times = weights[rows.student].astype(int)
    return metrics.point_metrics(rows.where(np.repeat(np.arange(len(rows)), times)))


@pytest.mark.parametrize("ties", [None, 8])
def test_draws_are_metrics_of_resampled_students(ties):
    rows = world(np.random.default_rng(0), ties=ties)
    scores = bootstrap.score(rows, num_resamples=25, seed=4)
    weights = np.concatenate(list(bootstrap.resample_students(40, 25, 4)))
    assert (weights.sum(1) == 40).all()
    for i in range(25):
        expected = by_hand(rows, weights[i])
        for name in metrics.METRICS:
            assert scores.draws[name][i] == pytest.approx(expected[name], abs=1e-9), name
    assert scores.values == metrics.point_metrics(rows)


def test_each_student_is_drawn_equally_often():
    weights = np.concatenate(list(bootstrap.resample_students(20, 4000, 0)))
    assert weights.mean(0) == pytest.approx(np.ones(20), abs=0.08)
    assert weights.var() == pytest.approx(1 - 1 / 20, rel=0.05)


@pytest.mark.parametrize("ties", [None, 8])
def test_the_linear_auc_leaves_out_a_term_of_second_order(ties):
    """Standard error falls as 1 / sqrt(S); what is left out must fall as 1 / S."""
    errors = {}
    for students in (100, 1600):
        squares = []
        for world_seed in range(4):
            rows = world(np.random.default_rng(world_seed), students=students, ties=ties)
            exact = bootstrap.score(rows, num_resamples=100).draws["AUC"]
            linear = bootstrap.score(rows, num_resamples=100, exact_work=0).draws["AUC"]
            squares.append(np.mean((exact - linear) ** 2))
            assert linear.std() == pytest.approx(exact.std(), rel=0.06)
        errors[students] = np.sqrt(np.mean(squares))
    # A term of first order falls 4-fold, of second 16-fold, of third 64-fold.
    assert 8 < errors[100] / errors[1600] < 32
    assert errors[1600] < 0.05 * exact.std()


def test_order_of_rows_changes_nothing():
    rng = np.random.default_rng(2)
    rows = world(rng)
    moved = rows.where(rng.permutation(len(rows)))
    a, b = bootstrap.score(rows, num_resamples=50), bootstrap.score(moved, num_resamples=50)
    assert a.fingerprint == b.fingerprint
    for name in metrics.METRICS:
        np.testing.assert_allclose(a.draws[name], b.draws[name], rtol=1e-12)


@pytest.mark.parametrize("exact_work", [bootstrap.EXACT_WORK, 0])
def test_coverage(exact_work):
    """A 95 % interval holds the value of the population in about 95 % of repetitions."""
    rng = np.random.default_rng(3)
    population = bootstrap.point_metrics(world(rng, students=40_000, noise=0.7))
    inside = {name: 0 for name in metrics.METRICS}
    repetitions = 200
    for _ in range(repetitions):
        scores = bootstrap.score(
            world(rng, students=80, noise=0.7), num_resamples=200, exact_work=exact_work
        )
        for name in metrics.METRICS:
            interval = scores.interval(name)
            inside[name] += interval.low <= population[name] <= interval.high
    # Binomial: at a true coverage of .95, fewer than 178 of 200 has probability .0002; percentile
    # intervals of 80 students fall a little short of .95, hence the room below.
    for name, number in inside.items():
        assert 0.87 <= number / repetitions <= 1.0, (name, number)


def test_coverage_of_paired_differences():
    """p-values of two equally good models are uniform: about 5 % below .05."""
    rng = np.random.default_rng(5)
    p_values, excluded = [], 0
    for _ in range(200):
        rows = world(rng, students=60)
        logit = special.logit(np.clip(rows.probability, 1e-4, 1 - 1e-4))
        noisy = [special.expit(logit + rng.normal(size=logit.size)) for _ in range(2)]
        a, b = (
            bootstrap.score(
                Rows(*(p if n == "probability" else getattr(rows, n) for n in rows.__dict__)),
                num_resamples=200,
            )
            for p in noisy
        )
        found = bootstrap.compare(a, b, "AUC")
        p_values.append(found.p_value)
        excluded += not found.difference.low <= 0 <= found.difference.high
    # At a rate of .05, 22 or more of 200 has probability .0005.
    assert np.mean(np.array(p_values) < 0.05) < 0.11 and excluded / 200 < 0.11
    assert 0.4 < np.mean(p_values) < 0.6


def test_paired_comparison_is_antisymmetric_and_sees_a_better_model():
    rng = np.random.default_rng(6)
    rows = world(rng, students=100)
    worse = Rows(*(getattr(rows, n) for n in rows.__dict__))
    object.__setattr__(worse, "probability", rng.permutation(rows.probability))
    a, b = bootstrap.score(rows), bootstrap.score(worse)
    for metric in metrics.METRICS:
        one, two = bootstrap.compare(a, b, metric), bootstrap.compare(b, a, metric)
        assert one.p_value == two.p_value
        assert one.difference.mean == -two.difference.mean
        assert one.difference.low == pytest.approx(-two.difference.high, abs=1e-12)
        assert one.difference.high == pytest.approx(-two.difference.low, abs=1e-12)
    assert bootstrap.compare(a, b, "AUC").p_value == pytest.approx(1 / 1001)
    assert bootstrap.compare(a, b, "AUC").difference.low > 0.1
    same = bootstrap.compare(a, a, "AUC")
    assert same.p_value == 1.0 and same.difference.low == same.difference.high == 0.0


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(7)
    rows = world(rng, students=100)
    close = Rows(*(getattr(rows, n) for n in rows.__dict__))
    p = np.clip(rows.probability + rng.normal(0, 0.02, len(rows)), 0, 1).astype(np.float32)
    object.__setattr__(close, "probability", p)
    a, b = bootstrap.score(rows), bootstrap.score(close)
    paired, alone = bootstrap.compare(a, b, "AUC").difference, a.interval("AUC")
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_different_tasks_are_not_compared():
    rng = np.random.default_rng(8)
    a, b = bootstrap.score(world(rng)), bootstrap.score(world(rng))
    with pytest.raises(ValueError, match="same students"):
        bootstrap.compare(a, b, "AUC")
    rows = world(rng)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap.compare(bootstrap.score(rows, seed=1), bootstrap.score(rows, seed=2), "AUC")
    with pytest.raises(ValueError, match="at least 1"):
        bootstrap.score(rows, num_resamples=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        a.interval("AUC", level=1.0)


def test_seeds_by_hand():
    rng = np.random.default_rng(9)
    rows = world(rng, students=60)
    runs = []
    for _ in range(3):
        run = Rows(*(getattr(rows, n) for n in rows.__dict__))
        p = np.clip(rows.probability + rng.normal(0, 0.1, len(rows)), 0, 1).astype(np.float32)
        object.__setattr__(run, "probability", p)
        runs.append(bootstrap.score(run))
    found = bootstrap.over_seeds(runs, "AUC")
    values = [run.values["AUC"] for run in runs]
    assert found.interval.mean == pytest.approx(np.mean(values))
    assert found.std_over_seeds == pytest.approx(np.std(values, ddof=1))
    assert found.seed_means.tolist() == values
    assert np.isnan(bootstrap.over_seeds(runs[:1], "AUC").std_over_seeds)
    # Three seeds against one of them: the difference of means.
    difference = bootstrap.compare(runs, runs[0], "AUC").difference.mean
    assert difference == pytest.approx(np.mean(values) - values[0])


def test_one_class_has_no_auc_and_no_interval():
    rows = world(np.random.default_rng(10), students=5)
    right = rows.where(rows.response == 1)
    for exact_work in (0, bootstrap.EXACT_WORK):
        scores = bootstrap.score(right, num_resamples=20, exact_work=exact_work)
        assert np.isnan(scores.interval("AUC").low) and np.isfinite(scores.interval("ACC").low)
    empty = bootstrap.score(rows.where(rows.response > 1), num_resamples=20)
    assert empty.num_students == 0 and np.isnan(empty.values["ACC"])
