"""The decoder on the Pallas kernels (interpret mode) against the decoder on plain XLA."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import Decoder, preset


@pytest.mark.slow
def test_loss_and_gradients_equal_those_on_xla():
    """Two scanned layers under remat, packed rows with padding, grouped heads."""
    config = preset(
        "debug", vocab_size=40, num_layers=2, hidden_dim=12, mlp_dim=20, num_heads=4,
        num_kv_heads=2, head_dim=6, norm_scheme="dssn", remat="nothing",
        attention_implementation="xla", norm_implementation="xla",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 40, (2, 20)), jnp.int32)
    ids = jnp.asarray([[1] * 7 + [2] * 11 + [0] * 2, [1] * 20], jnp.int32)
    weights = jnp.asarray(rng.normal(size=(2, 20, 40)), jnp.float32) * (ids > 0)[..., None]
    params = Decoder(config).init(jax.random.key(0), tokens)
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), params)

    def loss(params, config):
        logits = Decoder(config).apply(params, tokens, segment_ids=ids)
        return jnp.sum(weights * jnp.tanh(logits))

    kernels = dataclasses.replace(
        config, attention_implementation="interpret", norm_implementation="interpret"
    )
    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    want, got = (step(params, x) for x in (config, kernels))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)

    def near(a, b):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max() + 1e-3))

    jax.tree.map(near, got[1], want[1])
