"""Every check passes an honest model and finds the leak it is named for."""

import pathlib
import sys

import jax
import numpy as np
import pytest

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.evaluation import floors, leaks
from recsys_jax.tracing.evaluation.metrics import auc
from recsys_jax.tracing.evaluation.protocols import SINGLE_STEP, Predictor, Protocol, collect

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tracing_toys as toys  # noqa: E402

HONEST = toys.predictor(toys.mean_so_far)
BATCH = toys.random_batch(np.random.default_rng(0), students=8)


def future_questions(batch):
    shifted = np.roll(np.asarray(batch.questions), -1, axis=1)
    return HONEST.logits(batch) + 0.01 * shifted


LEAKING = {
    "own response": lambda b: HONEST.logits(b) + 0.01 * b.responses,
    "later response": lambda b: HONEST.logits(b) + 0.01 * np.roll(b.responses, -2, axis=1),
    "all responses": lambda b: HONEST.logits(b) + 0.01 * b.responses.sum(1, keepdims=True),
    "later question": future_questions,
    "later concept": lambda b: HONEST.logits(b) + 0.01 * np.roll(b.concepts, -1, axis=1)[..., 0],
}


@pytest.mark.parametrize("seed", range(3))
def test_an_honest_model_is_causal(seed):
    leaks.check_causality(HONEST.logits, BATCH, seed=seed)
    leaks.check_padding(HONEST.logits, BATCH)


@pytest.mark.parametrize("name", LEAKING)
@pytest.mark.parametrize("seed", range(3))
def test_a_leaking_model_is_found(name, seed):
    with pytest.raises(leaks.LeakError, match="must not read"):
        leaks.check_causality(LEAKING[name], BATCH, seed=seed)


def test_nan_is_no_pass():
    with pytest.raises(leaks.LeakError):
        leaks.check_padding(lambda b: np.where(b.mask, np.nan, 0.0), BATCH)


def test_reading_the_padding_is_found():
    def mean_over_everything(batch):
        return np.broadcast_to(batch.questions.mean(1, keepdims=True), batch.mask.shape)

    with pytest.raises(leaks.LeakError, match="padded steps"):
        leaks.check_padding(mean_over_everything, BATCH)


@pytest.mark.parametrize("feedback", ["threshold", "sample", "expected"])
def test_a_roll_out_that_reads_true_answers_is_found(feedback):
    observed = np.broadcast_to(np.arange(20) < 3, BATCH.mask.shape)
    leaks.check_open_loop(HONEST.rollout, BATCH, observed, feedback=feedback)

    def peeking(batch, observed, feedback, key):
        return HONEST.rollout(batch, observed, feedback, key) + 1e-6 * batch.responses

    with pytest.raises(leaks.LeakError, match="reads true answers"):
        leaks.check_open_loop(peeking, BATCH, observed, feedback=feedback)


def test_shuffled_labels_give_half_and_a_peeking_model_does_not():
    rng = np.random.default_rng(1)
    clean = toys.random_batch(rng, students=150, steps=30)
    (shuffled,) = leaks.shuffle_responses([clean], seed=2)
    assert shuffled.responses.sum() == clean.responses.sum()
    assert (shuffled.responses[~clean.mask] == 0).all()
    assert (shuffled.responses != clean.responses).any()

    def rows(predictor, protocol):
        data = [(np.arange(150), shuffled)]
        return collect(predictor, data, [protocol], jax.random.key(0))[protocol.name]

    peeking = Predictor(lambda b: HONEST.logits(b) + 0.8 * b.responses)
    trained = floors.make_floors(floors.fit_rates([clean]))["student x question"]
    for honest in (HONEST, trained):
        for protocol in (SINGLE_STEP, Protocol(0.5, "threshold"), Protocol(0.2, "expected")):
            leaks.check_chance(rows(honest, protocol))
    with pytest.raises(leaks.LeakError, match="must be .5"):
        leaks.check_chance(rows(peeking, SINGLE_STEP))
    with pytest.raises(ValueError, match="not defined"):
        leaks.check_chance(rows(HONEST, SINGLE_STEP).where(np.zeros(0, int)))


def test_training_on_shuffled_labels_gives_half():
    """Tables fitted on shuffled answers of other students know nothing."""
    rng = np.random.default_rng(3)
    train, test = (
        leaks.shuffle_responses([toys.random_batch(rng, students=120)], seed=i)[0] for i in (0, 1)
    )
    fitted = floors.make_floors(floors.fit_rates([train]))["question mean"]
    data = [(np.arange(120), test)]
    leaks.check_chance(collect(fitted, data, [SINGLE_STEP], jax.random.key(0))["single-step"])
    # Fitted on the test students themselves and barely smoothed, the same table does.
    few = Batch(*(x[:4] for x in test))
    own = floors.make_floors(floors.fit_rates([few], smoothing=0.1))["question mean"]
    rows = collect(own, [(np.arange(4), few)], [SINGLE_STEP], jax.random.key(0))["single-step"]
    assert auc(rows.response, rows.probability) > 0.6


def test_concept_expanded_duplicates_are_refused():
    concepts = np.array([[[1, 0], [2, 0], [2, 0], [3, 0], [3, 0]]])
    # One answer written for two concepts; then a second attempt, then two answers that differ.
    batch = toys.batch_of([1, 1, 1, 0, 0], questions=[[5, 5, 5, 6, 6]], concepts=concepts)
    assert leaks.expanded_duplicates(batch)[0].tolist() == [False, True, False, False, False]
    with pytest.raises(leaks.LeakError, match="1 of 5 steps"):
        leaks.check_no_expanded_duplicates([batch])
    assert leaks.check_no_expanded_duplicates([batch], allow=True) == 1
    assert leaks.check_no_expanded_duplicates([BATCH]) == 0
    other = batch._replace(responses=np.array([[1, 0, 0, 0, 0]]))
    assert not leaks.expanded_duplicates(other).any()


def test_students_in_two_parts_are_refused():
    leaks.check_disjoint_students({"train": [1, 2], "valid": [3], "test": np.array([4, 5])})
    with pytest.raises(leaks.LeakError, match="1 students stand in both 'train' and 'test'"):
        leaks.check_disjoint_students({"train": [1, 2], "valid": [3], "test": [2, 4]})


def test_tables_from_more_than_training_data_are_refused():
    rng = np.random.default_rng(4)
    parts = {"train": [toys.random_batch(rng)], "test": [toys.random_batch(rng)]}
    leaks.check_train_only(lambda p: floors.fit_rates(p["train"]).concept, parts)
    with pytest.raises(leaks.LeakError, match="build it from training"):
        leaks.check_train_only(
            lambda p: {"rates": floors.fit_rates([*p["train"], *p["test"]]).question_right}, parts
        )
    with pytest.raises(leaks.LeakError, match="left out"):
        leaks.check_train_only(
            lambda p: np.bincount(p["test"][0].questions.ravel(), minlength=99)
            if p["test"] else np.zeros(99, int),
            parts,
        )  # fmt: skip
    with pytest.raises(ValueError, match="no 'train'"):
        leaks.check_train_only(lambda p: 0, {"test": []})
