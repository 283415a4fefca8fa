"""The simulator, and its exact predictor against brute force, calibration and other predictors."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from recsys_jax.tracing.data import (
    CleaningConfig,
    DataError,
    SimulatorConfig,
    World,
    bayes_of_log,
    bayes_probabilities,
    clean,
    load,
    simulate,
)

TINY = SimulatorConfig(
    num_students=5, num_questions=5, num_topics=2, concepts_per_topic=2, abilities=2, levels=2,
    min_length=5, max_length=5, initial_mastery=0.4, learn_right=0.6, learn_wrong=0.3, forget=0.2,
    stay=0.5,
)  # fmt: skip
seeds = st.integers(0, 9999)


def response_sequence_probability(world, questions, responses):
    """P(responses | questions) by a walk over every joint state of ability and all concepts."""
    c = world.config
    concepts = c.num_topics * c.concepts_per_topic
    states = list(itertools.product(range(c.levels), repeat=concepts))
    total = 0.0
    for theta, prior in zip(world.ability_grid, world.ability_prior, strict=True):
        belief = {
            s: math.prod(
                math.comb(c.levels - 1, m)
                * c.initial_mastery**m * (1 - c.initial_mastery) ** (c.levels - 1 - m)
                for m in s
            )
            for s in states
        }  # fmt: skip
        for question, response in zip(questions, responses, strict=True):
            used = [int(i) - 1 for i in world.concept_sets[question - 1]]
            moved = dict.fromkeys(states, 0.0)
            for state, weight in belief.items():
                mean = sum(state[i] for i in used) / len(used)
                score = world.discrimination[question - 1] * (
                    theta + c.mastery_scale * (mean - (c.levels - 1) / 2)
                    - world.difficulty[question - 1]
                )  # fmt: skip
                p = 1 / (1 + math.exp(-score))
                weight *= p if response else 1 - p
                learn = c.learn_right if response else c.learn_wrong
                for target in states:
                    chance = 1.0
                    for i, (old, new) in enumerate(zip(state, target, strict=True)):
                        rate, goal = (learn, min(old + 1, c.levels - 1)) if i in used else (
                            c.forget, max(old - 1, 0))  # fmt: skip
                        chance *= rate * (new == goal) + (1 - rate) * (new == old)
                    moved[target] += weight * chance
            belief = moved
        total += prior * sum(belief.values())
    return total


def brute_force(world, questions, responses, observed):
    """P(response t = 1 | observed ones before t), by sums over all that is not observed."""
    result = []
    for t in range(len(questions)):
        joint = [0.0, 0.0]
        choices = [[responses[i]] if observed[i] else [0, 1] for i in range(t)]
        for past in itertools.product(*choices):
            for last in (0, 1):
                joint[last] += response_sequence_probability(
                    world, questions[: t + 1], [*past, last]
                )
        result.append(joint[1] / sum(joint))
    return result


@settings(max_examples=6)
@given(seeds, st.lists(st.booleans(), min_size=4, max_size=4))
def test_exact_predictions_are_those_of_brute_force(seed, observed):
    rng = np.random.default_rng(seed)
    world = World.build(dataclasses.replace(TINY, world_seed=seed))
    questions, responses = rng.integers(1, 6, 4), rng.integers(0, 2, 4)
    got = bayes_probabilities(
        world, questions[None], responses[None], np.ones((1, 4), bool), np.array([observed])
    )
    np.testing.assert_allclose(
        got[0], brute_force(world, questions, responses, observed), rtol=1e-9
    )


def test_three_levels_and_one_ability_by_brute_force():
    config = dataclasses.replace(TINY, levels=3, num_topics=1, abilities=1, num_questions=3)
    world = World.build(config)
    questions, responses = np.array([1, 3, 2, 3]), np.array([1, 0, 0, 1])
    for observed in ([True] * 4, [False] * 4):
        got = bayes_probabilities(
            world, questions[None], responses[None], np.ones((1, 4), bool), np.array([observed])
        )
        want = brute_force(world, questions, responses, observed)
        np.testing.assert_allclose(got[0], want, rtol=1e-9)


@pytest.fixture(scope="module")
def population():
    """500 students of the default world, with the three exact predictions."""
    simulation = simulate(SimulatorConfig(num_students=500, max_length=60))
    log, _ = clean(simulation.raw, CleaningConfig(min_answers=1))
    single = bayes_of_log(simulation.world, log)
    loop = bayes_of_log(simulation.world, log, observed=False)
    return simulation, log, single, loop


def per_student(log, values):
    return np.bincount(log.student, weights=values, minlength=log.num_students)


def log_loss(log, probability):
    return -np.log(np.where(log.response == 1, probability, 1 - probability))


def test_predictions_are_calibrated(population):
    simulation, log, single, loop = population
    truth = simulation.probability[log.row]
    for values, bound in ((truth, 4.0), (single, 4.0)):
        # Residuals given the past are a martingale: their sums have the variance sum p(1 - p).
        for low in np.arange(0, 1, 0.1):
            here = (values >= low) & (values < low + 0.1)
            if here.sum() > 100:
                residual = (log.response[here] - values[here]).sum()
                spread = np.sqrt((values[here] * (1 - values[here])).sum())
                assert abs(residual) < bound * spread
    for low in np.arange(0, 1, 0.1):  # open loop: a student's residuals depend on each other
        here = (loop >= low) & (loop < low + 0.1)
        if here.sum() > 100:
            sums = per_student(log, np.where(here, log.response - loop, 0))
            assert abs(sums.sum()) < 4 * np.sqrt((sums**2).sum())


def test_nothing_beats_the_exact_predictor(population):
    """On log-loss, by students: truth < single step < open loop < question mean of the same data,
    and single step < the exact predictor of a world that is a little off."""
    simulation, log, single, loop = population
    world = simulation.world
    right = np.bincount(log.question, weights=log.response, minlength=151)
    mean = ((right + 1) / (np.bincount(log.question, minlength=151) + 2))[log.question]
    ladder = [simulation.probability[log.row], single, loop, mean]
    for better, worse in itertools.pairwise(ladder):
        gain = per_student(log, log_loss(log, worse) - log_loss(log, better))
        assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))
    for change in ({"forget": 0.15}, {"learn_right": 0.0, "learn_wrong": 0.0},
                   {"ability_scale": 0.2}):  # fmt: skip
        off = dataclasses.replace(world, config=dataclasses.replace(world.config, **change))
        gain = per_student(log, log_loss(log, bayes_of_log(off, log)) - log_loss(log, single))
        assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))


def test_shuffled_labels_cannot_be_predicted(population):
    simulation, log, single, _ = population
    assert roc_auc_score(log.response, single) > 0.7
    shuffled = np.random.default_rng(0).permutation(log.response)
    blind = bayes_of_log(simulation.world, dataclasses.replace(log, response=shuffled))
    assert abs(roc_auc_score(shuffled, blind) - 0.5) < 0.02  # four standard errors of 20,000


@given(seeds, st.integers(0, 9))
def test_predictions_read_the_past_only(seed, step):
    rng = np.random.default_rng(seed)
    world = World.build(SimulatorConfig(num_questions=20))
    questions, responses = rng.integers(1, 21, (3, 10)), rng.integers(0, 2, (3, 10))
    mask = np.arange(10) < np.array([[10], [7], [step + 1]])
    before = bayes_probabilities(world, questions, responses, mask)
    other, asked = responses.copy(), questions.copy()
    other[:, step:] = 1 - other[:, step:]
    asked[:, step + 1 :] = rng.integers(1, 21, (3, 9 - step))
    after = bayes_probabilities(world, asked, other, mask)
    np.testing.assert_array_equal(before[:, : step + 1], after[:, : step + 1])
    assert (before[~mask] == 0).all()
    if step < 9:
        flipped = responses.copy()
        flipped[:, step] = 1 - flipped[:, step]
        moved = bayes_probabilities(world, questions, flipped, mask)
        assert (moved[0, step + 1 :] != before[0, step + 1 :]).any()
    loops = [bayes_probabilities(world, questions, r, mask, False) for r in (responses, other)]
    np.testing.assert_array_equal(*loops)


def test_prefix_is_single_step_then_open_loop():
    simulation = simulate(SimulatorConfig(num_students=6))
    log, _ = clean(simulation.raw)
    world = simulation.world
    single, half = bayes_of_log(world, log), bayes_of_log(world, log, observed=0.5)
    for student in range(log.num_students):
        begin, end = log.offsets[student : student + 2]
        cut = begin + math.ceil(0.5 * (end - begin))
        np.testing.assert_allclose(half[begin : cut + 1], single[begin : cut + 1], rtol=1e-12)
        assert (half[cut + 1 : end] != single[cut + 1 : end]).any()


def test_dense_ids_of_a_cleaned_log_find_their_questions():
    """Cleaning gives out new ids; predictions must not move."""
    simulation = simulate(dataclasses.replace(TINY, num_students=40))
    whole, _ = clean(simulation.raw, CleaningConfig(min_answers=1))
    some = whole.of_students(np.arange(0, 40, 7))
    raw = simulation.raw
    keep = np.isin(raw.student, some.student_ids[some.student])
    part = dataclasses.replace(
        raw, student=raw.student[keep], question=raw.question[keep],
        concepts=raw.concepts.take(keep), response=raw.response[keep],
    )  # fmt: skip
    log, _ = clean(part, CleaningConfig(min_answers=1))
    np.testing.assert_allclose(
        bayes_of_log(simulation.world, log), bayes_of_log(simulation.world, some)
    )
    with pytest.raises(DataError, match="not those of the simulated world"):
        bayes_probabilities(simulation.world, np.array([[9]]), np.zeros((1, 1)), np.ones((1, 1)))


def test_seeds_and_size():
    small, large = (simulate(SimulatorConfig(num_students=n)) for n in (300, 700))
    rows = len(small.raw.student)
    for name in ("student", "question", "response"):
        np.testing.assert_array_equal(
            getattr(small.raw, name), getattr(large.raw, name)[:rows], err_msg=name
        )
    np.testing.assert_array_equal(small.probability, large.probability[:rows])
    np.testing.assert_array_equal(small.ability, large.ability[:300])
    other = simulate(SimulatorConfig(num_students=300, seed=1))
    assert other.raw.response[:500].tolist() != small.raw.response[:500].tolist()
    np.testing.assert_array_equal(other.world.difficulty, small.world.difficulty)


def test_content_of_the_world():
    world = World.build(SimulatorConfig(max_concepts=3))
    sizes = world.members.sum(1)
    assert set(sizes) == {1, 2, 3} and set(world.topic) == set(range(5))
    for question, concepts in enumerate(map(world.concept_sets.__getitem__, range(150))):
        assert len(set(concepts)) == sizes[question]
        assert set((concepts - 1) // 3) == {world.topic[question]}
    assert world.ability_prior.sum() == pytest.approx(1)


def test_learning_and_forgetting_show():
    """Mastery rises with practice alone, and falls with forgetting alone."""
    base = dataclasses.replace(TINY, num_students=400, min_length=30, max_length=30)
    for change, sign in (({"forget": 0.0}, 1), ({"learn_right": 0.0, "learn_wrong": 0.0}, -1)):
        simulation = simulate(dataclasses.replace(base, **change))
        by_step = simulation.mastery.reshape(400, 30).mean(0)
        assert sign * (by_step[20:].mean() - by_step[:3].mean()) > 0.15


def test_default_data_set():
    data = load()
    assert data.report.rows_kept == len(data.log) and data.log.num_students == 1000
    truth = data.simulation.probability[data.log.row]
    assert roc_auc_score(data.log.response, truth) > 0.75
    assert data.unseen_questions == 0
    first = next(iter(data.training_batches(batch_size=4, prefetch=0)))
    assert first.questions.shape == (4, 80)
    assert next(data.evaluation_batches("test", batch_size=8)).students.min() >= 0


def test_settings_of_the_simulator_are_checked():
    for key, value in (("levels", 1), ("forget", 1.5), ("num_questions", 2), ("max_concepts", 9)):
        with pytest.raises(DataError, match=f"data.simulator.{key}"):
            SimulatorConfig(**{key: value})
