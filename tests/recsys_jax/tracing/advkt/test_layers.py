"""Cross entropy over all questions in chunks: equal to the definition, padding left out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recsys_jax.tracing.advkt.layers import class_nll, mlp

ROWS, LENGTH, WIDTH, CLASSES = 4, 9, 5, 11


def made(seed=0):
    rng = np.random.default_rng(seed)
    params = [
        {"kernel": rng.normal(size=(WIDTH, outputs)), "bias": rng.normal(size=outputs)}
        for outputs in (WIDTH, CLASSES)
    ]
    x = rng.normal(size=(ROWS, LENGTH, WIDTH))
    labels = rng.integers(0, CLASSES, (ROWS, LENGTH)).astype(np.int32)
    return params, x, labels


MASKS = {
    "ragged": np.arange(LENGTH) < np.array([[9], [2], [0], [5]]),
    "with gaps": np.random.default_rng(1).random((ROWS, LENGTH)) < 0.5,
    "full": np.ones((ROWS, LENGTH), bool),
    "empty": np.zeros((ROWS, LENGTH), bool),
}


@pytest.mark.parametrize("chunk", [1, 4, 7, 36, 1000])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("squash", [False, True])
def test_value_and_gradients_are_those_of_the_definition(kind, chunk, squash):
    mask = MASKS[kind]
    weights = np.random.default_rng(2).normal(size=mask.shape)

    def plain(params, x, labels):
        logits = mlp(params, x)
        logits = jax.nn.sigmoid(logits) if squash else logits
        own = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
        nll = jnp.where(mask, jax.nn.logsumexp(logits, -1) - own, 0)
        return jnp.sum(weights * nll), nll

    def chunked(params, x, labels):
        nll = class_nll(params, x, labels, jnp.asarray(mask), squash=squash, chunk=chunk)
        return jnp.sum(weights * nll), nll

    with jax.enable_x64():
        arguments = jax.tree.map(jnp.asarray, made())
        found, expected = (
            jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(*arguments)
            for f in (chunked, plain)
        )
        chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-12)


def test_padding_is_not_computed():
    """What stands in padding may be anything, also what is no number."""
    params, x, labels = made()
    mask = MASKS["ragged"]
    spoilt = np.where(mask[..., None], x, np.nan)

    def loss(x):
        return jnp.sum(class_nll(params, x, jnp.asarray(labels), mask, squash=False, chunk=1))

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(spoilt, jnp.float32))
    clean = jax.jit(loss)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, clean, rtol=1e-5)
    assert np.isfinite(np.where(mask[..., None], slope, 0)).all()
    assert not np.where(mask[..., None], 0, np.nan_to_num(slope, nan=1.0)).any()
