"""Question mean, logistic regression and BKT against counting, scikit-learn and brute force."""

from __future__ import annotations

import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models import build
from recsys_jax.tracing.models.bkt import (
    BKTConfig,
    expected_counts,
    fit_bkt,
    log_likelihood,
    tables_of,
)
from recsys_jax.tracing.models.logistic import LogisticConfig, fit_logistic
from recsys_jax.tracing.models.question_mean import QuestionMeanConfig, fit_question_mean

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_batches import CONCEPTS, QUESTIONS, STEPS, moved_variables, students  # noqa: E402


def made(name, config, concepts=CONCEPTS):
    return build(name, config, num_questions=QUESTIONS, num_concepts=concepts)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize("prior", ["global", "concepts"])
def test_question_mean_counts(prior):
    batch = students(count=5)
    module = made("question_mean", QuestionMeanConfig(strength=2.0, prior=prior))
    variables = fit_question_mean(module, batch)
    questions, concepts, responses, mask = map(np.asarray, batch)
    share = responses[mask].mean()

    def smoothed(chosen, prior):
        return (responses[chosen].sum() + 2 * prior) / (chosen.sum() + 2)

    p = sigmoid(module.apply(variables, batch))
    for b, t in zip(*np.nonzero(mask), strict=True):
        base = share
        if prior == "concepts":
            ids = concepts[b, t][concepts[b, t] > 0]
            base = np.mean([smoothed(mask & (concepts == c).any(-1), share) for c in ids])
        expected = smoothed(mask & (questions == questions[b, t]), base)
        assert p[b, t] == pytest.approx(expected, rel=1e-5)


def test_unknown_questions_get_the_prior_and_ids_beyond_the_tables_are_refused():
    batch = students()
    module = made("question_mean", QuestionMeanConfig())
    variables = fit_question_mean(module, batch)
    unknown = batch._replace(questions=jnp.zeros_like(batch.questions))
    p = sigmoid(module.apply(variables, unknown))
    share = np.asarray(batch.responses)[np.asarray(batch.mask)].mean()
    np.testing.assert_allclose(p, share, rtol=1e-5)
    with pytest.raises(ValueError, match=f"questions holds id {QUESTIONS + 3}"):
        fit_question_mean(module, batch._replace(questions=batch.questions + 3))
    with pytest.raises(ValueError, match="no answers"):
        fit_question_mean(module, batch._replace(mask=jnp.zeros_like(batch.mask)))


def design(batch):
    """The features of every real step as rows, built step by step: (steps, features), answers."""
    questions, concepts, responses, mask = map(np.asarray, batch)
    rows, answers = [], []
    for b in range(len(mask)):
        counts, total = np.zeros((CONCEPTS + 1, 2)), np.zeros(2)
        for t in np.flatnonzero(mask[b]):
            ids = concepts[b, t][concepts[b, t] > 0]
            question, concept = np.zeros(QUESTIONS + 1), np.zeros(CONCEPTS + 1)
            slopes = np.zeros((CONCEPTS + 1, 2))
            question[questions[b, t]] = 1
            for c in ids:
                concept[c] = 1 / len(ids)
                slopes[c] = np.log1p(counts[c]) / len(ids)
            rows.append(np.concatenate([question, concept, slopes.ravel(), np.log1p(total)]))
            answers.append(responses[b, t])
            total[responses[b, t]] += 1
            for c in ids:
                counts[c, responses[b, t]] += 1
    return np.array(rows), np.array(answers)


def test_logistic_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    batch = students(count=12)
    module = made("logistic", LogisticConfig(l2=0.5, tolerance=1e-7))
    logits = np.asarray(module.apply(fit_logistic(module, batch), batch))[np.asarray(batch.mask)]
    rows, answers = design(batch)
    peer = LogisticRegression(C=1 / 0.5, tol=1e-10, max_iter=5000).fit(rows, answers)
    np.testing.assert_allclose(logits, peer.decision_function(rows), atol=2e-3)


def test_logistic_reads_the_counts_that_a_loop_finds():
    batch = students()
    module = made("logistic", LogisticConfig())
    variables = moved_variables(module)
    names = ("question", "concept", "concept_slopes", "total_slopes")
    w = np.concatenate([np.ravel(variables["params"][name]) for name in names])
    expected = design(batch)[0] @ w.astype(np.float64) + float(variables["params"]["bias"])
    logits = np.asarray(module.apply(variables, batch))[np.asarray(batch.mask)]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


BKT_VALUES = {"known": 0.3, "learn": 0.2, "forget": 0.1, "guess": 0.22, "slip": 0.12}


def bkt_tables(rows=2):
    return tables_of(**{name: jnp.full(rows, value) for name, value in BKT_VALUES.items()})


def one_concept(responses):
    """Students of a single concept."""
    responses = jnp.asarray(responses, jnp.int32)
    ones = jnp.ones_like(responses)
    return Batch(ones, ones[..., None], responses, ones.astype(bool))


def paths(responses):
    """Probability of every hidden path together with the responses, by enumeration."""
    v = BKT_VALUES
    start = [1 - v["known"], v["known"]]
    move = [[1 - v["learn"], v["learn"]], [v["forget"], 1 - v["forget"]]]
    right = [v["guess"], 1 - v["slip"]]
    for path in itertools.product((0, 1), repeat=len(responses)):
        p = start[path[0]]
        for t, state in enumerate(path):
            p *= right[state] if responses[t] else 1 - right[state]
            if t + 1 < len(path):
                p *= move[state][path[t + 1]]
        yield path, p


def evidence(responses):
    return sum(p for _, p in paths(responses)) if len(responses) else 1.0


@pytest.mark.parametrize("responses", [(1, 0, 0, 1, 1, 0), (0, 0, 0, 0, 1)])
def test_bkt_forward_is_the_sum_over_hidden_paths(responses):
    module = made("bkt", BKTConfig(**BKT_VALUES, forgetting=True), concepts=1)
    batch = one_concept([responses])
    variables = jax.jit(module.init)(jax.random.key(0), batch)
    p = sigmoid(module.apply(variables, batch))[0]
    for t in range(len(responses)):
        expected = evidence((*responses[:t], 1)) / evidence(responses[:t])
        assert p[t] == pytest.approx(expected, rel=1e-5)
    log_tables = jax.tree.map(jnp.log, bkt_tables())
    expected = np.log(evidence(responses))
    assert float(log_likelihood(log_tables, batch)) == pytest.approx(expected, rel=1e-5)


def test_bkt_expected_counts_are_those_of_the_hidden_paths():
    responses = (1, 0, 1, 1)
    _, counts = expected_counts(bkt_tables(), one_concept([responses]))
    start, move, answer = np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2))
    total = evidence(responses)
    for path, p in paths(responses):
        start[path[0]] += p / total
        for t, state in enumerate(path):
            answer[state, responses[t]] += p / total
            if t + 1 < len(path):
                move[state, path[t + 1]] += p / total
    for actual, expected in zip(counts, (start, move, answer), strict=True):
        np.testing.assert_allclose(actual[1], expected, rtol=1e-4)
        np.testing.assert_allclose(actual[0], 0, atol=1e-6)


def test_bkt_keeps_concepts_apart_and_averages_sets():
    """Two concepts asked together: each filtered alone, the prediction their mean."""
    module = made("bkt", BKTConfig(**BKT_VALUES, forgetting=True), concepts=2)
    concepts = jnp.array([[[1, 0], [2, 0], [1, 2], [1, 0]]], jnp.int32)
    responses = jnp.array([[1, 0, 1, 0]], jnp.int32)
    batch = Batch(jnp.ones_like(responses), concepts, responses, jnp.ones((1, 4), bool))
    variables = jax.jit(module.init)(jax.random.key(0), batch)
    p = sigmoid(module.apply(variables, batch))[0]

    def next_right(*past):
        return evidence((*past, 1)) / evidence(past)

    expected = [
        next_right(),
        next_right(),
        (next_right(1) + next_right(0)) / 2,
        next_right(1, 1),
    ]
    np.testing.assert_allclose(p, expected, rtol=1e-5)


def simulate(values, count, steps, seed=0):
    rng = np.random.default_rng(seed)
    known, responses = rng.random(count) < values["known"], []
    for _ in range(steps):
        right = np.where(known, 1 - values["slip"], values["guess"])
        responses.append(rng.random(count) < right)
        learned = rng.random(count) < values["learn"]
        known = np.where(known, rng.random(count) >= values["forget"], learned)
    return np.array(responses).T.astype(int)


def test_bkt_em_never_lowers_the_likelihood_and_finds_the_simulated_probabilities():
    truth = BKT_VALUES | {"forget": 0.0}
    batch = one_concept(simulate(truth, 3000, 8))

    def tables(variables, config):
        module = made("bkt", config, concepts=1)
        return module.apply(variables, method="tables")

    values = []
    for iterations in (1, 2, 5, 40):
        config = BKTConfig(iterations=iterations, prior_strength=0.0, students_at_once=700)
        fitted = tables(fit_bkt(made("bkt", config, concepts=1), batch), config)
        values.append(float(expected_counts(fitted, batch)[0]))
    assert values == sorted(values)
    # Starts, rates and answers of the simulation, within four standard errors or so of 3000 chains.
    assert float(fitted.start[1, 1]) == pytest.approx(0.3, abs=0.06)
    assert float(fitted.move[1, 0, 1]) == pytest.approx(0.2, abs=0.05)
    assert float(fitted.answer[1, 0, 1]) == pytest.approx(0.22, abs=0.05)
    assert float(fitted.answer[1, 1, 0]) == pytest.approx(0.12, abs=0.03)


def test_bkt_keeps_the_start_values_of_concepts_without_answers():
    config = BKTConfig(iterations=2)
    module = made("bkt", config, concepts=2)
    variables = fit_bkt(module, one_concept(simulate(BKT_VALUES, 20, STEPS)))
    tables = module.apply(variables, method="tables")
    assert float(tables.start[2, 1]) == pytest.approx(config.known, rel=1e-5)
    assert float(tables.answer[2, 1, 0]) == pytest.approx(config.slip, rel=1e-4)
    assert float(tables.move[2, 1, 0]) == 0.0


def test_configs_name_the_wrong_value():
    with pytest.raises(ValueError, match="guess=0.6 must be below cap=0.5"):
        BKTConfig(guess=0.6)
    with pytest.raises(ValueError, match="prior='question'"):
        QuestionMeanConfig(prior="question")
