"""The training loss: what the model reads under each kind of supervision, and how answers weigh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.config import SUPERVISION, LearningConfig
from recsys_jax.tracing.learning import make_loss, observed_steps
from recsys_jax.tracing.models import build, model_spec
from recsys_jax.tracing.models.losses import bce

QUESTIONS, CONCEPTS, STEPS = 12, 4, 10


def students(seed=0, lengths=(10, 7, 3)):
    rng = np.random.default_rng(seed)
    shape = (len(lengths), STEPS)
    mask = np.arange(STEPS) < np.array(lengths)[:, None]
    return Batch(
        jnp.asarray(np.where(mask, rng.integers(1, QUESTIONS + 1, shape), 0), jnp.int32),
        jnp.asarray(np.where(mask, rng.integers(1, CONCEPTS + 1, shape), 0), jnp.int32)[..., None],
        jnp.asarray(np.where(mask, rng.integers(0, 2, shape), 0), jnp.int32),
        jnp.asarray(mask),
    )


def tiny(name):
    small = {"embedding_dim": 8, "hidden_dim": 8, "ffn_dim": 8, "num_heads": 2, "head_dims": (8,)}
    cls = model_spec(name).config_class
    fields = cls.__dataclass_fields__
    config = cls(**{k: v for k, v in small.items() if k in fields}, dropout_rate=0.0)
    model = build(name, config, num_questions=QUESTIONS, num_concepts=CONCEPTS)
    params = model.init(jax.random.key(1), students())["params"]
    return model, jax.tree.map(lambda x: x + 0.1, params)


def test_observed_steps_are_what_the_supervision_says():
    mask = jnp.ones((4000, STEPS), bool)

    def steps(kind, **options):
        config = LearningConfig(supervision=kind, **options)
        return np.asarray(observed_steps(config, mask, jax.random.key(0)))

    assert steps("true").all() and not steps("own").any()
    prefix = steps("random_prefix")
    cut = prefix.sum(1)
    assert (prefix == (np.arange(STEPS) < cut[:, None])).all()
    # Every cut from 0 to the whole length, about equally often.
    counts = np.bincount(cut, minlength=STEPS + 1)
    assert len(counts) == STEPS + 1 and counts.min() > 0.6 * 4000 / (STEPS + 1)
    assert abs(steps("scheduled", true_share=0.25).mean() - 0.25) < 0.01


@pytest.mark.parametrize("name", ["dkt", "akt"])
@pytest.mark.parametrize("kind", SUPERVISION)
def test_targets_are_true_and_unobserved_responses_are_not_read(name, kind):
    model, params = tiny(name)
    batch = students()
    loss = jax.jit(make_loss(model, LearningConfig(supervision=kind)))
    found = loss(params, batch, jax.random.key(5), {})
    assert np.isfinite(found.total) and float(found.weight) == 20
    if kind == "true":
        logits = model.apply({"params": params}, batch)
        expected = jnp.where(batch.mask, bce(logits, batch.responses), 0).sum()
        np.testing.assert_allclose(found.metrics["bce"], expected, rtol=1e-5)
    if kind == "own":
        # Only the targets know the responses: the sum over both answers to everything is the same
        # for every batch with the same questions.
        def both(responses):
            one = loss(params, batch._replace(responses=responses), jax.random.key(5), {})
            other = loss(params, batch._replace(responses=1 - responses), jax.random.key(5), {})
            return float(one.metrics["bce"] + other.metrics["bce"])

        other = jnp.where(batch.mask, 1 - batch.responses.at[0].set(0), 0)
        np.testing.assert_allclose(both(batch.responses), both(other), rtol=1e-5)


def test_an_answer_weighs_the_same_in_every_batch():
    """With `answers` the gradients of short batches add up to that of all students together."""
    model, params = tiny("dkt")
    batch = students()
    whole = make_loss(model, LearningConfig())
    part = make_loss(model, LearningConfig(), answers=20.0)

    def gradient(loss, rows):
        rows = jax.tree.map(lambda x: x[jnp.array(rows)], batch)

        def value(params):
            sums = loss(params, rows, jax.random.key(0), {})
            return sums.total / sums.weight

        return jax.grad(value)(params)

    together = gradient(whole, [0, 1, 2])
    apart = jax.tree.map(jnp.add, gradient(part, [0]), gradient(part, [1, 2]))
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
