"""Schedules and optimizers against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.config import ConfigError, resolve
from pangu_jax.training.optimizer import OptimizerConfig, build_optimizer, build_schedule


def test_cosine_with_warmup():
    config = OptimizerConfig(
        learning_rate=2.0, schedule="cosine", warmup_steps=10, final_fraction=0.1
    )
    rate = build_schedule(config, 110)
    for step in (0, 5, 10, 35, 60, 110, 500):
        if step < 10:
            want = 2.0 * step / 10
        else:
            x = min(step - 10, 100) / 100
            want = 2.0 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * x)))
        assert float(rate(step)) == pytest.approx(want, rel=1e-5), step


@pytest.mark.parametrize(
    "schedule, step, want",
    [
        ("constant", 70, 1.0),
        ("linear", 60, 0.5),
        ("linear", 110, 0.0),
        ("rsqrt", 10, 1.0),
        ("rsqrt", 40, 0.5),
    ],
)
def test_other_schedules(schedule, step, want):
    rate = build_schedule(
        OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10), 110
    )
    assert float(rate(step)) == pytest.approx(want, abs=1e-6)


def test_adamw_first_step_and_clipping():
    config = OptimizerConfig(
        learning_rate=0.1, weight_decay=0.5, decay_matrices_only=True, clip_norm=1.0
    )
    optimizer = build_optimizer(config, 10)
    params = {"w": jnp.full((2, 2), 2.0), "b": jnp.full(2, 2.0)}
    grads = {"w": jnp.full((2, 2), 30.0), "b": jnp.full(2, -30.0)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # Bias correction makes Adam's first step the sign of the gradient times the rate.
    np.testing.assert_allclose(updates["b"], 0.1, rtol=1e-4)
    np.testing.assert_allclose(updates["w"], -0.1 - 0.1 * 0.5 * 2.0, rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "adagrad", "rmsprop"])
def test_every_optimizer_goes_downhill(name):
    optimizer = build_optimizer(OptimizerConfig(name=name, learning_rate=0.05), 10)
    params = {"w": jnp.array([3.0, -2.0])}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert (np.sign(updates["w"]) == [-1, 1]).all()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"learning_rate": 0.0}, "optimizer: learning_rate is 0.0; it must be above 0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
        ({"name": "adam", "weight_decay": 0.1}, "choose name='adamw'"),
        ({"name": "adamv"}, "Did you mean 'adam"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
    ],
)
def test_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        resolve(OptimizerConfig, values, path="--config.train.optimizer")
