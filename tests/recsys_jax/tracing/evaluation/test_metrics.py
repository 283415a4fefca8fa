"""Metrics against scikit-learn and by hand; rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import calibration
from sklearn import metrics as reference

from recsys_jax.tracing.evaluation import metrics
from recsys_jax.tracing.evaluation.marginals import collapse, response_marginals
from recsys_jax.tracing.evaluation.rows import RowAccumulator, Rows


def rows_of(p, r, student=None, question=None, step=None, horizon=None):
    n = len(p)
    zeros = np.zeros(n, np.int32)
    return Rows(
        np.arange(n, dtype=np.int32) if student is None else np.asarray(student, np.int32),
        zeros if step is None else np.asarray(step, np.int32),
        zeros + 1 if question is None else np.asarray(question, np.int32),
        np.asarray(p, np.float32),
        np.asarray(r, np.int8),
        zeros + 1 if horizon is None else np.asarray(horizon, np.int32),
    )


# Few distinct numbers, so that ties and bin edges are common.
PAIRS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.99, 1.0]), st.integers(0, 1)),
    min_size=2,
    max_size=60,
).filter(lambda pairs: len({r for _, r in pairs}) == 2)


@settings(deadline=None)
@given(PAIRS)
def test_equal_to_scikit_learn(pairs):
    rows = rows_of(*zip(*pairs, strict=True))
    p, r = rows.probability.astype(float), rows.response
    found = metrics.point_metrics(rows)
    assert found["AUC"] == pytest.approx(reference.roc_auc_score(r, p), abs=1e-12)
    assert found["ACC"] == pytest.approx(reference.accuracy_score(r, p >= 0.5))
    assert found["RMSE"] == pytest.approx(reference.root_mean_squared_error(r, p))
    clipped = np.clip(p, 2.0**-24, 1 - 2.0**-24)
    assert found["log-loss"] == pytest.approx(reference.log_loss(r, clipped, labels=[0, 1]))


@settings(deadline=None)
@given(PAIRS, st.integers(1, 12))
def test_reliability_equal_to_scikit_learn(pairs, bins):
    rows = rows_of(*zip(*pairs, strict=True))
    p, r = rows.probability.astype(float), rows.response
    found = metrics.reliability(rows, bins)
    observed, predicted = calibration.calibration_curve(r, p, n_bins=bins)
    full = found.count > 0
    np.testing.assert_allclose(found.observed[full], observed)
    np.testing.assert_allclose(found.predicted[full], predicted)
    assert found.count.sum() == len(rows)
    by_hand = (np.abs(observed - predicted) * found.count[full]).sum() / len(rows)
    assert found.ece == pytest.approx(by_hand)


def test_auc_by_hand():
    assert metrics.auc([0, 1], [0.2, 0.8]) == 1.0
    assert metrics.auc([1, 0], [0.2, 0.8]) == 0.0
    assert metrics.auc([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5]) == 0.5
    assert metrics.auc([0, 1, 1], [0.5, 0.5, 0.9]) == 0.75
    assert np.isnan(metrics.auc([1, 1], [0.2, 0.8]))
    assert np.isnan(metrics.auc([], []))


def test_certain_and_wrong_costs_a_finite_loss():
    found = metrics.point_metrics(rows_of([0.0, 1.0], [1, 0]))["log-loss"]
    assert found == pytest.approx(24 * np.log(2), rel=1e-6)


def test_rows_hold_the_scored_steps_alone():
    found = RowAccumulator()
    scored = np.array([[False, True, True], [True, False, False]])
    batch = dict(
        questions=np.array([[4, 5, 6], [7, 8, 0]]), responses=np.array([[1, 0, 1], [1, 1, 0]]),
        horizon=np.array([[0, 1, 2], [1, 2, 3]]),
    )  # fmt: skip
    p = np.array([[np.nan, 0.25, 0.5], [1.0, 7.0, np.nan]])  # What is not scored may be anything.
    found.add(students=[30, 10], probabilities=p, scored=scored, **batch)
    found.add(students=[11, 12], probabilities=p, scored=scored & False, **batch)
    rows = found.finish()
    assert rows.student.tolist() == [30, 30, 10] and rows.step.tolist() == [1, 2, 0]
    assert rows.question.tolist() == [5, 6, 7] and rows.response.tolist() == [0, 1, 1]
    assert rows.probability.tolist() == [0.25, 0.5, 1.0] and rows.horizon.tolist() == [1, 2, 1]
    assert rows.bucket(2, 9).question.tolist() == [6]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(probabilities=[[0.2, np.nan]]), "no probabilities"),
        (dict(probabilities=[[0.2, 1.5]]), "0 to 1"),
        (dict(responses=[[0, 2]]), "allowed are 0 and 1"),
        (dict(students=[1, 2]), "students has shape"),
        (dict(horizon=[[1]]), "horizon has shape"),
    ],
)
def test_rows_refuse(change, message):
    good = dict(
        students=[1], questions=[[1, 2]], responses=[[0, 1]], probabilities=[[0.2, 0.3]],
        scored=[[True, True]], horizon=[[1, 2]],
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        RowAccumulator().add(**{k: np.asarray(v) for k, v in (good | change).items()})


def test_fingerprint_sees_the_task_and_not_the_predictions():
    rows = rows_of([0.1, 0.2, 0.3], [0, 1, 1], student=[5, 6, 7])
    moved = rows.where(np.array([2, 0, 1]))
    assert moved.fingerprint() == rows.fingerprint()
    assert rows_of([0.9] * 3, [0, 1, 1], student=[5, 6, 7]).fingerprint() == rows.fingerprint()
    assert rows_of([0.1] * 3, [0, 1, 0], student=[5, 6, 7]).fingerprint() != rows.fingerprint()
    assert rows_of([0.1] * 3, [0, 1, 1], student=[5, 6, 8]).fingerprint() != rows.fingerprint()
    # Answers exchanged between two students are another task though the columns hold the same.
    assert rows_of([0.1] * 3, [1, 0, 1], student=[5, 6, 7]).fingerprint() != rows.fingerprint()


def test_marginals_by_hand():
    rows = rows_of(
        [0.2, 0.6, 0.9, 0.4], [0, 1, 1, 0], student=[1, 2, 1, 2], question=[3, 3, 8, 8],
        step=[0, 1, 1, 0],
    )  # fmt: skip
    found = response_marginals(rows, "question")
    assert found.group.tolist() == [3, 8] and found.count.tolist() == [2, 2]
    np.testing.assert_allclose(found.predicted, [0.4, 0.65], rtol=1e-6)
    assert found.true.tolist() == [0.5, 0.5] and found.answered.tolist() == [0.5, 0.5]
    by_step = response_marginals(rows, "position")
    assert by_step.true.tolist() == [0.0, 1.0]
    np.testing.assert_allclose(by_step.predicted, [0.3, 0.75], rtol=1e-6)
    # Two students: every resample's gap lies between those of single students.
    assert (found.low >= [-0.4 - 1e-6, -0.1 - 1e-6]).all() and (found.low < found.high).all()
    with pytest.raises(ValueError, match="allowed are question, position"):
        response_marginals(rows, "day")


def test_collapse_is_seen():
    rng = np.random.default_rng(0)
    r = (rng.random(400) < 0.6).astype(int)
    student = np.repeat(np.arange(20), 20)
    fine = collapse(rows_of(np.where(r, 0.8, 0.4) + rng.normal(0, 0.05, 400), r, student))
    dead = collapse(rows_of(np.full(400, 0.97), r, student))
    assert not fine.collapsed and dead.collapsed
    assert dead.student_spread == pytest.approx(0.0, abs=1e-6) and fine.student_spread > 0.2
    assert dead.position_gap == pytest.approx(0.97 - r.mean(), abs=1e-6)
    # Students who answer everything right may be answered for alike.
    assert not collapse(rows_of(np.full(4, 0.97), [1, 1, 1, 1])).collapsed
