"""`rollout` against step-by-step references, with a toy model with steps and one without."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.rollout import rollout

B, T = 3, 8
# One compilation per toy model and way of feedback.
roll = jax.jit(rollout, static_argnums=0, static_argnames=("feedback", "samples", "with_responses"))


class Stepped:
    """logit_t = w (a s + b_q), s = decayed sum of signed earlier responses."""

    def apply(self, variables, *args, method=None, train=False, rngs=None):
        if method is None:
            return self.whole(variables, *args)
        return getattr(self, method)(variables, *args)

    def begin(self, variables, batch):
        return jnp.zeros(batch.questions.shape[0])

    def predict_step(self, variables, state, question, concepts):
        return variables["a"] * state + variables["b"][question]

    def update_step(self, variables, state, question, concepts, response):
        return 0.8 * state + (2.0 * response - 1) * variables["b"][question]

    def whole(self, variables, batch):
        state, logits = self.begin(variables, batch), []
        for t in range(batch.questions.shape[1]):
            step = batch.questions[:, t], batch.concepts[:, t]
            logits.append(self.predict_step(variables, state, *step))
            state = self.update_step(variables, state, *step, batch.responses[:, t])
        return jnp.stack(logits, 1)


class Whole:
    """The same model as a triangular product over the whole sequence, without steps."""

    soft_responses = True

    def apply(self, variables, batch, *, train=False, rngs=None):
        steps = batch.questions.shape[1]
        gap = np.arange(steps)[:, None] - np.arange(steps) - 1
        weight = np.where(gap >= 0, 0.8 ** np.maximum(gap, 0), 0)
        bias = variables["b"][batch.questions]
        signed = (2.0 * batch.responses - 1) * bias
        return variables["a"] * signed @ weight.T.astype(np.float32) + bias


class Hard(Whole):
    """Whole, but without probabilities."""

    soft_responses = False


class Alternating:
    """Every response depends on the one before alone: as many passes as there are steps."""

    def apply(self, variables, batch, *, train=False, rngs=None):
        before = jnp.pad(batch.responses, ((0, 0), (1, 0)))[:, :-1]
        return variables["a"] * (0.5 - before)


VARIABLES = {"a": jnp.float32(1.7), "b": jnp.linspace(-1.0, 1.2, 9)}


def batch_of(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < np.concatenate([[T], rng.integers(1, T + 1, B - 1)])[:, None]
    questions = np.where(mask, rng.integers(1, 9, (B, T)), 0)
    responses = np.where(mask, rng.integers(0, 2, (B, T)), 0)
    arrays = (questions, questions[..., None], responses)
    return Batch(*(jnp.asarray(x, jnp.int32) for x in arrays), jnp.asarray(mask))


def reference(batch: Batch, observed, feed):
    """float64 NumPy loop over time: logits and responses fed on."""
    a, b = float(VARIABLES["a"]), np.asarray(VARIABLES["b"], np.float64)
    questions, true, mask = (np.asarray(x) for x in (batch.questions, batch.responses, batch.mask))
    state, logits, fed = np.zeros(B), np.zeros((B, T)), np.zeros((B, T))
    for t in range(T):
        logits[:, t] = a * state + b[questions[:, t]]
        own = np.where(mask[:, t], feed(logits[:, t], t), 0)
        fed[:, t] = np.where(observed[:, t], true[:, t], own)
        state = 0.8 * state + (2 * fed[:, t] - 1) * b[questions[:, t]]
    return logits, fed


both = pytest.mark.parametrize("model", [Stepped(), Whole()], ids=["stepped", "whole"])
seeds = given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.3, 0.8]))


def observed_of(seed, share):
    return np.random.default_rng(seed + 1).random((B, T)) < share


@both
def test_with_every_response_observed_it_is_the_model(model):
    batch = batch_of()
    observed = jnp.ones((B, T), bool)
    for feedback in ("threshold", "sample"):
        logits, fed = roll(
            model,
            VARIABLES,
            batch,
            observed,
            feedback=feedback,
            key=jax.random.key(0),
            with_responses=True,
        )
        np.testing.assert_allclose(logits, model.apply(VARIABLES, batch), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(fed, batch.responses)


@both
@settings(max_examples=10)
@seeds
def test_threshold_and_expected_are_the_step_by_step_loop(model, seed, share):
    batch, observed = batch_of(seed), observed_of(seed, share)
    rules = {
        "threshold": lambda logit, t: logit >= 0,
        "expected": lambda logit, t: 1 / (1 + np.exp(-logit)),
    }
    for feedback, rule in rules.items():
        logits, fed = roll(
            model, VARIABLES, batch, jnp.asarray(observed), feedback=feedback, with_responses=True
        )
        expected, expected_fed = reference(batch, observed, rule)
        mask = np.asarray(batch.mask)
        np.testing.assert_allclose(logits[mask], expected[mask], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fed, expected_fed, rtol=1e-4, atol=1e-5)


@settings(max_examples=10)
@seeds
def test_both_ways_draw_the_same_samples(seed, share):
    batch, observed = batch_of(seed), jnp.asarray(observed_of(seed, share))
    options = dict(feedback="sample", key=jax.random.key(seed), samples=3, with_responses=True)
    logits, fed = roll(Stepped(), VARIABLES, batch, observed, **options)
    other, other_fed = roll(Whole(), VARIABLES, batch, observed, **options)
    assert logits.shape == fed.shape == (3, B, T)
    mask = np.broadcast_to(batch.mask, fed.shape)
    np.testing.assert_array_equal(fed[mask], other_fed[mask])
    np.testing.assert_allclose(logits[mask], other[mask], rtol=1e-4, atol=1e-5)


def test_passes_go_on_until_the_last_response_is_final():
    batch = batch_of()._replace(mask=jnp.ones((B, T), bool))
    _, fed = roll(Alternating(), VARIABLES, batch, jnp.zeros((B, T), bool), with_responses=True)
    np.testing.assert_array_equal(fed, np.tile(np.arange(T) % 2 == 0, (B, 1)))


@both
@pytest.mark.parametrize("feedback", ["sample", "threshold", "expected"])
def test_unobserved_true_responses_are_not_read(model, feedback):
    batch, observed = batch_of(3), jnp.arange(T) < jnp.full((B, 1), 3)
    key = jax.random.key(0) if feedback == "sample" else None
    other = jnp.where(observed, batch.responses, 1 - batch.responses)
    results = [
        roll(model, VARIABLES, b, observed, feedback=feedback, key=key)
        for b in (batch, batch._replace(responses=other))
    ]
    np.testing.assert_array_equal(*results)


@both
def test_samples_follow_the_predicted_probability_and_differ(model):
    batch = batch_of()
    _, fed = roll(
        model,
        VARIABLES,
        batch,
        jnp.zeros((B, T), bool),
        feedback="sample",
        key=jax.random.key(1),
        samples=2000,
        with_responses=True,
    )
    first = jax.nn.sigmoid(VARIABLES["b"][batch.questions[:, 0]])
    # Four standard deviations of a mean of 2000 coins.
    np.testing.assert_allclose(fed[:, :, 0].mean(0), first, atol=4 * 0.5 / 2000**0.5)
    correlation = np.corrcoef(fed[:, 0, 0], fed[:, 1, 0])[0, 1]
    assert abs(correlation) < 4 / 2000**0.5  # students draw independently


@both
def test_more_padding_changes_neither_draws_nor_logits(model):
    batch, observed = batch_of(), jnp.zeros((B, T), bool)
    longer = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 5)] + [(0, 0)] * (x.ndim - 2)), batch)
    options = dict(feedback="sample", key=jax.random.key(0))
    short = roll(model, VARIABLES, batch, observed, **options)
    long = roll(model, VARIABLES, longer, jnp.zeros((B, T + 5), bool), **options)
    mask = np.asarray(batch.mask)
    np.testing.assert_allclose(long[:, :T][mask], short[mask], rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("feedback", ["sample", "threshold", "expected"])
def test_gradient_is_that_of_the_model_given_what_was_fed_on(model, feedback):
    batch, observed = batch_of(5), jnp.arange(T) < jnp.full((B, 1), 2)
    options = dict(feedback=feedback, key=jax.random.key(0) if feedback == "sample" else None)
    _, fed = roll(model, VARIABLES, batch, observed, with_responses=True, **options)

    def loss(logits):
        return jnp.where(batch.mask, jnp.logaddexp(0, logits) - batch.responses * logits, 0).sum()

    @jax.jit
    def rolled(variables):
        return jax.grad(lambda v: loss(roll(model, v, batch, observed, **options)))(variables)

    given_fed = batch._replace(responses=fed)
    expected = jax.grad(lambda v: loss(model.apply(v, given_fed)))(VARIABLES)
    actual = rolled(VARIABLES)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-5)
    assert np.any(np.asarray(actual["a"]) != 0)


def test_misuse_is_refused():
    batch, observed = batch_of(), jnp.zeros((B, T), bool)
    cases = [
        (dict(feedback="greedy"), "'greedy' is not one of"),
        (dict(feedback="sample"), "needs key"),
        (dict(feedback="threshold", samples=3), "samples=3"),
        (dict(feedback="sample", key=jax.random.key(0), samples=0), "samples=0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            rollout(Whole(), VARIABLES, batch, observed, **options)
    with pytest.raises(ValueError, match="does not take"):
        rollout(Hard(), VARIABLES, batch, observed, feedback="expected")
    with pytest.raises(ValueError, match="observed has shape"):
        rollout(Whole(), VARIABLES, batch, observed[:, 1:])
