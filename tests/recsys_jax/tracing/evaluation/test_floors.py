"""Floors by hand, and that they are beaten or not where they must be."""

import pathlib
import sys

import jax
import numpy as np
import pytest

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.evaluation import floors, leaks
from recsys_jax.tracing.evaluation.evaluator import evaluate, score_protocol
from recsys_jax.tracing.evaluation.protocols import SINGLE_STEP, Protocol, collect

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tracing_toys as toys  # noqa: E402


def test_rates_by_hand():
    concepts = np.array([[[1, 2], [1, 0], [2, 0]], [[1, 2], [0, 0], [0, 0]]])
    train = toys.batch_of([1, 0, 1], [0], questions=[[1, 2, 4], [1]], concepts=concepts)
    rates = floors.fit_rates([train], smoothing=2.0)
    assert rates.overall == 0.5
    # Question 1: one of two right; 2: none of one; 3: never; 4: one of one.
    assert rates.question_right.tolist() == [0, 1, 0, 0, 1]
    assert rates.question_count.tolist() == [0, 2, 1, 0, 1]
    # Concept 1: right, wrong, wrong; concept 2: right, right, wrong.
    np.testing.assert_allclose(rates.concept, [0.5, (1 + 1) / 5, (2 + 1) / 5])
    concepts = np.array([[[1, 2], [1, 0], [7, 0], [2, 0]]])
    test = toys.batch_of([1, 1, 0, 0], questions=[[2, 9, 3, 4]], concepts=concepts)
    np.testing.assert_allclose(floors.concept_rates(rates, test), [[0.5, 0.4, 0.5, 0.6]])
    # Questions lean on their concepts: (0 + 2 x .5) / 3, and (1 + 2 x .6) / 3.
    np.testing.assert_allclose(floors.question_rates(rates, test), [[1 / 3, 0.4, 0.5, 2.2 / 3]])
    bare = floors.fit_rates([train], smoothing=0.0)
    np.testing.assert_allclose(floors.question_rates(bare, test), [[0.0, 1 / 3, 0.5, 1.0]])
    with pytest.raises(ValueError, match="at least 0"):
        floors.fit_rates([train], smoothing=-1.0)
    with pytest.raises(ValueError, match="no answer"):
        floors.fit_rates([train._replace(mask=train.mask & False)])


def test_rates_do_not_depend_on_batching():
    rng = np.random.default_rng(0)
    batch = toys.random_batch(rng, students=8)
    parts = [Batch(*(x[i : i + 1] for x in batch)) for i in range(8)]
    a, b = floors.fit_rates([batch]), floors.fit_rates(parts)
    np.testing.assert_allclose(a.question_right, b.question_right)
    np.testing.assert_allclose(a.question_count, b.question_count)
    np.testing.assert_allclose(a.concept, b.concept)


def test_student_rates_by_hand():
    rates = floors.Rates(0.5, np.array([0, 8, 4]), np.array([0, 10, 10]), np.array([0.5]), 0.0)
    batch = toys.batch_of([1, 0, 1], questions=[[1, 2, 1]])
    found = floors.student_rates(rates, batch, batch.mask, strength=2.0)
    odds = lambda p: p / (1 - p)  # noqa: E731
    second = odds(0.4) * odds((1 + 2 * 0.8) / 3) / odds(0.8)
    third = odds(0.8) * odds((1 + 2 * 0.6) / 4) / odds(0.6)
    expected = [0.8, second / (1 + second), third / (1 + third)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    nothing = floors.student_rates(rates, batch, batch.mask & False)
    np.testing.assert_allclose(nothing, floors.question_rates(rates, batch), rtol=1e-6)


def test_floors_keep_the_contract():
    rng = np.random.default_rng(1)
    batch = toys.random_batch(rng)
    rates = floors.fit_rates([toys.random_batch(rng, students=30)])
    for floor in floors.make_floors(rates).values():
        leaks.check_causality(floor.logits, batch)
        leaks.check_padding(floor.logits, batch)
        observed = np.arange(batch.mask.shape[1]) < 4
        observed = np.broadcast_to(observed, batch.mask.shape)
        leaks.check_open_loop(floor.rollout, batch, observed)


def test_floors_on_a_world_of_hard_questions_and_able_students():
    rng = np.random.default_rng(2)
    difficulty = np.append(0.0, rng.normal(0, 1.2, 30))

    def students(number):
        questions = [rng.integers(1, 31, 40) for _ in range(number)]
        ability = rng.normal(0, 1.2, number)
        answers = [
            (rng.random(40) < 1 / (1 + np.exp(difficulty[q] - a))).astype(int)
            for q, a in zip(questions, ability, strict=True)
        ]
        return toys.batch_of(*answers, questions=questions)

    rates = floors.fit_rates([students(300)])
    data = [(np.arange(150), students(150))]
    half, free = Protocol(0.5, "threshold"), Protocol(0.0, "threshold")
    found = {
        name: evaluate(floor, data, [SINGLE_STEP, free, half], num_resamples=50)
        for name, floor in floors.make_floors(rates).items()
    }

    def auc(name, protocol):
        return found[name][protocol.name].overall.values["AUC"]

    assert auc("majority", free) == 0.5
    assert auc("question mean", free) > 0.65 > auc("concept mean", free)
    # Without answers the student says nothing; with half of them they say a good deal.
    assert auc("student x question", free) == pytest.approx(auc("question mean", free), abs=1e-6)
    assert auc("student x question", half) > auc("question mean", half) + 0.05
    assert auc("student x question", SINGLE_STEP) > auc("question mean", SINGLE_STEP) + 0.05
    rate = found["majority"][free.name].collapse
    assert rate.answered_rate in (0.0, 1.0) and rate.collapsed
    majority = found["majority"][free.name].overall.values["ACC"]
    assert majority == pytest.approx(max(rate.true_rate, 1 - rate.true_rate), abs=1e-9)


def test_buckets_and_empty_protocols():
    batch = toys.batch_of(*[[1, 0] * 20] * 3)
    floor = floors.make_floors(floors.fit_rates([batch]))["question mean"]
    rows = collect(floor, [(np.arange(3), batch)], [Protocol(0.0, "threshold")], jax.random.key(0))
    result = score_protocol(
        Protocol(0.0, "threshold"), rows["open loop, threshold"], num_resamples=10
    )
    sizes = {bucket: scores.num_rows for bucket, scores in result.buckets.items()}
    assert sizes == {(1, 10): 30, (11, 30): 60, (31, 100): 30}
    lone = toys.batch_of([1], [0])
    with pytest.raises(ValueError, match="at least two answers"):
        evaluate(floor, [(np.arange(2), lone)], [Protocol(0.5)])
    # Without a choice: everything the model can do.
    assert len(evaluate(floor, [(np.arange(3), batch)], num_resamples=2)) == 19
