"""What `recsys_jax.tracing.interface` promises, checked for every model of the registry."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models import MODELS, build, model_spec
from recsys_jax.tracing.rollout import is_stepped

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_batches import (  # noqa: E402
    CONCEPTS,
    QUESTIONS,
    STEPS,
    STUDENTS,
    moved_variables,
    students,
)

# A model whose fields `tiny` cannot guess has an entry here.
TINY: dict[str, dict] = {}
READS_NO_RESPONSES = {"question_mean"}
models = pytest.mark.parametrize("name", MODELS)


def tiny(name: str):
    """The model's config with every wide integer at 8 and every length at 24."""
    cls = model_spec(name).config_class
    values = {}
    for field in dataclasses.fields(cls):
        value = field.default
        if type(value) is int and value > 8:
            values[field.name] = 24 if "len" in field.name or "steps" in field.name else 8
        if type(value) is tuple and value and all(type(v) is int for v in value):
            values[field.name] = (8,) * len(value)
    return cls(**(values | TINY.get(name, {})))


stepped = pytest.mark.parametrize(
    "name",
    [n for n in MODELS if is_stepped(build(n, tiny(n), num_questions=2, num_concepts=2))],
)


@functools.cache
def model(name: str):
    """The tiny module, variables away from their start (some start at 0), and a compiled apply."""
    module = build(name, tiny(name), num_questions=QUESTIONS, num_concepts=CONCEPTS)
    return module, moved_variables(module), jax.jit(module.apply)


def logits_of(name: str, batch: Batch) -> np.ndarray:
    _, variables, apply = model(name)
    return np.asarray(apply(variables, batch))


def same(actual, expected, mask=None):
    """Equal up to float32 rounding of another order of summation."""
    mask = np.ones(np.shape(expected), bool) if mask is None else np.asarray(mask)
    np.testing.assert_allclose(actual[mask], expected[mask], rtol=2e-5, atol=2e-5)


@models
def test_logits_are_finite_float32_of_the_batchs_shape(name):
    batch = students()
    logits = logits_of(name, batch)
    assert logits.shape == batch.questions.shape and logits.dtype == np.float32
    assert np.isfinite(logits[np.asarray(batch.mask)]).all()


@models
@settings(max_examples=6)
@given(seed=st.integers(0, 99), step=st.integers(0, STEPS - 1))
def test_no_logit_reads_its_own_response_or_anything_later(name, seed, step):
    batch, other = students(seed), students(seed + 1000)
    later = np.arange(STEPS) > step
    changed = Batch(
        jnp.where(later, other.questions, batch.questions),
        jnp.where(later[:, None], other.concepts, batch.concepts),
        jnp.where(np.arange(STEPS) >= step, 1 - batch.responses, batch.responses),
        batch.mask,
    )
    before = np.asarray(batch.mask) & ~later
    np.testing.assert_allclose(
        logits_of(name, changed)[before], logits_of(name, batch)[before], rtol=1e-6, atol=1e-6
    )


@models
def test_earlier_responses_matter_except_to_the_floor(name):
    batch = students()
    changed = batch._replace(responses=batch.responses.at[0, 2].set(1 - batch.responses[0, 2]))
    difference = np.abs(logits_of(name, changed) - logits_of(name, batch))
    assert difference[0, :3].max() <= 1e-6
    assert (difference[0, 3:].max() > 1e-4) == (name not in READS_NO_RESPONSES)
    assert difference[1:].max() <= 1e-6


@models
def test_padding_changes_nothing(name):
    batch = students()
    longer = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 8)] + [(0, 0)] * (x.ndim - 2)), batch)
    same(logits_of(name, longer)[:, :STEPS], logits_of(name, batch), batch.mask)


@models
def test_students_are_independent(name):
    batch = students()
    logits = logits_of(name, batch)
    order = np.array([2, 0, 1])
    permuted = jax.tree.map(lambda x: x[order], batch)
    same(logits_of(name, permuted), logits[order], batch.mask[order])
    for student in range(STUDENTS):
        alone = jax.tree.map(lambda x, i=student: x[i : i + 1], batch)
        same(logits_of(name, alone), logits[student : student + 1], alone.mask)


@models
def test_concept_sets_have_no_order_and_empty_slots_no_meaning(name):
    batch = students()
    reordered = batch._replace(concepts=batch.concepts[..., [2, 0, 1]])
    same(logits_of(name, reordered), logits_of(name, batch), batch.mask)
    wider = batch._replace(concepts=jnp.pad(batch.concepts, [(0, 0), (0, 0), (0, 2)]))
    same(logits_of(name, wider), logits_of(name, batch), batch.mask)


@stepped
def test_stepping_is_teacher_forcing(name):
    module, variables, _ = model(name)
    batch = students()

    begin, predict, update = (
        jax.jit(functools.partial(module.apply, variables, method=method))
        for method in ("begin", "predict_step", "update_step")
    )
    state, logits = begin(batch), []
    for t in range(STEPS):
        question, concepts = batch.questions[:, t], batch.concepts[:, t]
        logits.append(predict(state, question, concepts))
        # As a probability, the way a roll-out feeds it.
        state = update(state, question, concepts, batch.responses[:, t].astype(jnp.float32))
    logits = jnp.stack(logits, 1)
    same(np.asarray(logits), logits_of(name, batch), batch.mask)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {STUDENTS}


@stepped
def test_a_probability_moves_the_state_between_wrong_and_right(name):
    module, variables, _ = model(name)
    batch = students()
    question, concepts = batch.questions[:, 0], batch.concepts[:, 0]

    def after(response):
        def run(module):
            state = module.update_step(
                module.begin(batch), question, concepts, jnp.full(STUDENTS, response)
            )
            return module.predict_step(state, question, concepts)

        return np.asarray(nn.apply(run, module)(variables))

    wrong, half, nearly, right = (after(p) for p in (0.0, 0.5, 0.999, 1.0))
    assert np.isfinite(half).all()
    if name not in READS_NO_RESPONSES:
        assert (np.abs(nearly - right) < np.abs(wrong - right)).all()


@models
def test_gradients_of_training_are_finite_and_reach_parameters(name):
    module, variables, _ = model(name)
    batch = students()

    @jax.jit
    def gradient(params, key):
        def loss(params):
            logits, sown = module.apply(
                {"params": params},
                batch,
                train=True,
                rngs={"dropout": key},
                mutable=["losses"],
            )
            for term in jax.tree.leaves(sown):
                assert term.shape == ()
            bce = jnp.logaddexp(0, logits) - batch.responses * logits
            return jnp.where(batch.mask, bce, 0).sum() + sum(jax.tree.leaves(sown))

        return jax.value_and_grad(loss)(params)

    value, grads = gradient(variables["params"], jax.random.key(3))
    assert np.isfinite(value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    moved = [bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads)]
    assert np.mean(moved) > 0.5


@models
def test_only_training_is_random_and_only_through_the_dropout_rng(name):
    module, variables, _ = model(name)
    batch = students()

    @jax.jit
    def trained(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, batch, train=True, rngs=rngs, mutable=["losses"])[0]

    np.testing.assert_array_equal(trained(0), trained(0))
    random = bool(jnp.any(trained(0) != trained(1)))
    config = tiny(name)
    drops = any(getattr(config, f, 0) > 0 for f in ("dropout", "dropout_rate"))
    assert random or not drops


def test_unknown_names_sizes_and_configs_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'dkvmn'"):
        build("dkvnm", num_questions=3, num_concepts=3)
    with pytest.raises(ValueError, match="num_concepts=0"):
        build("dkt", num_questions=3, num_concepts=0)
    with pytest.raises(TypeError, match="DKTConfig"):
        build("dkt", tiny("dkvmn"), num_questions=3, num_concepts=3)
    with pytest.raises(ValueError, match="dropout_rate=1.0"):
        model_spec("dkt").config_class(dropout_rate=1.0)
