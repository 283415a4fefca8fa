"""Chunked cross entropy against the dense formula, and the promise never to hold all logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import cross_entropy

B, T, D, V = 3, 10, 6, 17


def problem(dtype=np.float64):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    head = jnp.asarray(rng.normal(size=(D, V)), dtype)
    labels = rng.integers(0, V, (B, T)).astype(np.int32)
    labels[0, 3:6] = -1
    labels[2] = -100
    weights = rng.random((B, T)) * (rng.random((B, T)) < 0.8)
    return hidden, head, jnp.asarray(labels), jnp.asarray(weights, dtype)


def dense(hidden, head, labels, weights, z_loss):
    """(total, nll, accuracy, weight) sums from logits made in one piece."""
    logits = jnp.einsum("btd,dv->btv", hidden, head)
    w = jnp.where(labels >= 0, weights, 0)
    log_norm = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    nll = jnp.sum(w * (log_norm - own))
    right = jnp.sum(w * (logits.argmax(-1) == labels))
    return nll + z_loss * jnp.sum(w * log_norm**2), nll, right, w.sum()


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [0, 1, 4, 5, 100])
def test_equals_the_dense_loss_and_gradient_in_float64(chunk, z_loss):
    with jax.enable_x64(True):
        hidden, head, labels, weights = problem()

        def chunked(hidden, head):
            sums = cross_entropy(hidden, head, labels, weights, chunk=chunk, z_loss=z_loss)
            return 3 * sums.total, sums

        grad = jax.jit(jax.grad(chunked, argnums=(0, 1), has_aux=True))
        got, sums = grad(hidden, head)
        total, nll, right, weight = dense(hidden, head, labels, weights, z_loss)
        want = jax.grad(lambda *x: 3 * dense(*x, labels, weights, z_loss)[0], (0, 1))(hidden, head)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
        # Without a gradient another path computes the sums.
        for values in (sums, cross_entropy(hidden, head, labels, weights, chunk=4, z_loss=z_loss)):
            np.testing.assert_allclose(values.total, total, rtol=1e-12)
            np.testing.assert_allclose(values.weight, weight, rtol=1e-12)
            np.testing.assert_allclose(values.metrics["nll"], nll, rtol=1e-12)
            np.testing.assert_allclose(values.metrics["accuracy"], right, rtol=1e-12)


def test_tokens_that_do_not_count_may_hold_anything():
    """Their hidden states change no sum, and they get no gradient."""
    hidden, head, labels, weights = problem(np.float32)
    ignored = np.asarray((labels < 0) | (weights == 0))
    hidden = jnp.where(ignored[..., None], 0, hidden)

    def total(hidden):
        return cross_entropy(hidden, head, labels, weights, chunk=4).total

    clean, dirty = total(hidden), total(jnp.where(ignored[..., None], 1e3, hidden))
    assert clean == dirty
    assert (np.asarray(jax.grad(total)(hidden))[ignored] == 0).all()


def test_no_weight_at_all_gives_zero_and_no_nan():
    hidden, head, labels, _ = problem(np.float32)
    sums, grad = jax.value_and_grad(
        lambda h: cross_entropy(h, head, jnp.full_like(labels, -1)).total
    )(hidden)
    assert sums == 0 and (grad == 0).all()


def test_huge_logits_stay_finite():
    hidden, head, labels, weights = problem(np.float32)
    value, grad = jax.value_and_grad(
        lambda h: cross_entropy(h, head, labels, weights, chunk=3).total
    )(hidden * 1e6)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_bfloat16_hidden_states_are_summed_in_float32():
    hidden, head, labels, weights = problem(np.float32)
    got = cross_entropy(hidden.astype(jnp.bfloat16), head, labels, weights, chunk=4)
    want = dense(hidden, head, labels, weights, 0.0)
    assert got.total.dtype == jnp.float32
    np.testing.assert_allclose(got.total, want[0], rtol=2e-2)
    np.testing.assert_allclose(got.weight, want[3], rtol=1e-6)


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.size
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


@pytest.mark.parametrize("chunk, is_small", [(32, True), (0, False)])
def test_no_array_of_all_logits(chunk, is_small):
    """Forward and backward; without chunks the same test sees the whole array."""
    rows, length, vocab = 2, 512, 1000
    shapes = (
        jax.ShapeDtypeStruct((rows, length, 8), jnp.float32),
        jax.ShapeDtypeStruct((8, vocab), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
    )
    step = jax.grad(lambda h, w, y: cross_entropy(h, w, y, chunk=chunk).total, (0, 1))
    largest = max(sizes(jax.make_jaxpr(step)(*shapes).jaxpr))
    assert (largest < rows * length * vocab) == is_small, largest


def test_arguments_that_do_not_fit():
    hidden, head, labels, weights = problem(np.float32)
    with pytest.raises(ValueError, match="head has shape"):
        cross_entropy(hidden, head.T, labels)
    with pytest.raises(ValueError, match="labels has shape"):
        cross_entropy(hidden, head, labels[:, 1:])
    with pytest.raises(ValueError, match="weights has shape"):
        cross_entropy(hidden, head, labels, weights[:1])
