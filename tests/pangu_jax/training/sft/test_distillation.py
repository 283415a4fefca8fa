"""Distillation and label log-probabilities against scipy on whole logits, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from pangu_jax.training.sft.distillation import DistillConfig, kl_divergence
from pangu_jax.training.sft.log_probs import label_log_probs, sums_by_sequence

B, P, D, E, V = 2, 5, 4, 3, 7


def numbers(seed=0):
    rng = np.random.default_rng(seed)
    student = rng.normal(size=(B, P, D)), rng.normal(size=(D, V))
    teacher = rng.normal(size=(B, P, E)), rng.normal(size=(E, V))
    labels = rng.integers(-1, V, (B, P)).astype(np.int32)
    labels[0, :2] = [-1, 3]
    return student, teacher, labels, rng.random((B, P))


def reference(student, teacher, labels, weights, config):
    """Row by row with scipy's relative entropy."""
    total = 0.0
    for place in np.ndindex(labels.shape):
        if labels[place] < 0:
            continue
        s, t = (hidden[place] @ head for hidden, head in (student, teacher))
        p, q = (scipy.special.softmax(x / config.temperature) for x in (t, s))
        loss = config.forward * scipy.stats.entropy(p, q)
        loss += (1 - config.forward) * scipy.stats.entropy(q, p)
        nll = -scipy.special.log_softmax(s)[labels[place]]
        total += weights[place] * (config.temperature**2 * loss + config.sft_weight * nll)
    return total


CONFIGS = [
    DistillConfig(),
    DistillConfig(forward=0.0, temperature=2.0),
    DistillConfig(forward=0.3, temperature=0.5, sft_weight=0.7),
]


def total(student, teacher, labels, weights, config, chunk):
    return kl_divergence(student, teacher, labels, weights, config, chunk=chunk).total


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("chunk", [0, 2, 5])
def test_equals_scipy_whatever_the_chunk(config, chunk):
    student, teacher, labels, weights = numbers()
    with jax.enable_x64(True):
        value = total(*jax.tree.map(jnp.asarray, (student, teacher, labels, weights)), config,
                      chunk)  # fmt: skip
        np.testing.assert_allclose(
            value, reference(student, teacher, labels, weights, config), rtol=1e-12
        )


@pytest.mark.parametrize("config", CONFIGS)
def test_gradient_is_that_of_finite_differences(config):
    student, teacher, labels, weights = numbers(1)
    with jax.enable_x64(True):
        args = jax.tree.map(jnp.asarray, (student, teacher, labels, weights))
        grads, to_teacher = jax.jit(
            jax.grad(lambda s, t: total(s, t, *args[2:], config, 2), argnums=(0, 1))
        )(*args[:2])
    rng, step = np.random.default_rng(2), 1e-6
    for part in range(2):
        for _ in range(6):
            place = tuple(rng.integers(0, n) for n in student[part].shape)
            values = []
            for sign in (1, -1):
                moved = [x.copy() for x in student]
                moved[part][place] += sign * step
                values.append(reference(moved, teacher, labels, weights, config))
            want = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(grads[part][place], want, rtol=1e-5, atol=1e-8)
    assert not any(np.asarray(x).any() for x in to_teacher)


def test_a_model_is_at_no_distance_from_itself():
    student, _, labels, weights = jax.tree.map(jnp.asarray, numbers())
    for forward in (0.0, 0.5, 1.0):
        config = DistillConfig(forward=forward)
        value, grad = jax.value_and_grad(total)(student, student, labels, weights, config, 2)
        np.testing.assert_allclose(value, 0, atol=1e-5)
        assert max(float(jnp.abs(g).max()) for g in grad) < 1e-5


def test_the_two_directions_differ_and_are_never_negative():
    args = jax.tree.map(jnp.asarray, numbers(3))
    forward, reverse = (total(*args, DistillConfig(forward=f), 0) for f in (1.0, 0.0))
    assert forward > 0 and reverse > 0 and abs(forward - reverse) > 0.1
    metrics = kl_divergence(*args, DistillConfig(forward=0.25)).metrics
    np.testing.assert_allclose(metrics["forward_kl"], forward, rtol=1e-6)
    np.testing.assert_allclose(metrics["reverse_kl"], reverse, rtol=1e-6)


def test_other_vocabularies_are_refused():
    student, teacher, labels, weights = jax.tree.map(jnp.asarray, numbers())
    with pytest.raises(ValueError, match="vocabulary has 6 entries, the student's 7"):
        kl_divergence(student, (teacher[0], teacher[1][:, :6]), labels, weights, DistillConfig())


@pytest.mark.parametrize(
    "values, words",
    [({"forward": 1.5}, "forward=1.5"), ({"temperature": 0}, "temperature=0"),
     ({"sft_weight": -1}, "sft_weight=-1")],
)  # fmt: skip
def test_settings_out_of_range(values, words):
    with pytest.raises(ValueError, match=words):
        DistillConfig(**values)


@pytest.mark.parametrize("chunk", [0, 2, 5])
def test_label_log_probs_equal_those_of_whole_logits(chunk):
    (hidden, head), _, labels, _ = numbers(4)
    with jax.enable_x64(True):
        values, best = label_log_probs(
            jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(labels), chunk=chunk
        )
        grad = jax.grad(
            lambda h: jnp.sum(
                jnp.sin(label_log_probs(h, jnp.asarray(head), labels, chunk=chunk)[0])
            )
        )(jnp.asarray(hidden))
    whole = scipy.special.log_softmax(hidden @ head, axis=-1)
    own = np.take_along_axis(whole, np.maximum(labels, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(values, np.where(labels >= 0, own, 0), rtol=1e-12)
    np.testing.assert_array_equal(best, (labels >= 0) & (whole.argmax(-1) == labels))
    # d sin(log p) / d hidden = cos(log p) * (column of the label - expected column)
    probabilities = np.exp(whole)
    columns = head.T[np.maximum(labels, 0)] - probabilities @ head.T
    want = np.where(labels >= 0, np.cos(own), 0)[..., None] * columns
    np.testing.assert_allclose(grad, want, rtol=1e-10, atol=1e-12)


def test_sums_by_sequence():
    values = jnp.array([[1.0, 2.0, 4.0, 8.0]])
    np.testing.assert_array_equal(
        sums_by_sequence(values, jnp.array([[0, 2, 2, 0]]), 4), [[9, 0, 6, 0]]
    )
