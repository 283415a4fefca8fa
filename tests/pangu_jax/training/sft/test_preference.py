"""DPO against a float64 NumPy reference, its gradient, and its fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.training.sft.preference import DpoConfig, dpo_loss


def reference(policy, base, tokens, weights, config):
    """Equation 7 of arXiv 2305.18290 in plain NumPy, with smoothing and the extra term."""
    total = 0.0
    for row in np.ndindex(weights.shape):
        ratios = [policy[row][i] - base[row][i] for i in (0, 1)]
        h = config.beta * (ratios[0] - ratios[1])
        loss = (1 - config.label_smoothing) * np.log1p(np.exp(-h))
        loss += config.label_smoothing * np.log1p(np.exp(h))
        loss += config.sft_weight * -policy[row][0] / max(tokens[row][0], 1)
        total += weights[row] * loss
    return total


def numbers(seed=0):
    rng = np.random.default_rng(seed)
    policy, base = -20 * rng.random((2, 3, 2, 2))
    tokens = rng.integers(1, 9, (3, 2, 2)).astype(float)
    weights = np.array([[1.0, 0.5], [0.0, 2.0], [1.0, 0.0]])
    return policy, base, tokens, weights


CONFIGS = [
    DpoConfig(),
    DpoConfig(beta=0.5, label_smoothing=0.2),
    DpoConfig(beta=0.3, sft_weight=0.7),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_the_equation(config):
    policy, base, tokens, weights = numbers()
    with jax.enable_x64(True):
        sums = dpo_loss(*map(jnp.asarray, (policy, base, tokens, weights)), config)
        np.testing.assert_allclose(
            sums.total, reference(policy, base, tokens, weights, config), rtol=1e-12
        )
        assert float(sums.weight) == 4.5
        margins = config.beta * ((policy - base)[..., 0] - (policy - base)[..., 1])
        np.testing.assert_allclose(sums.metrics["reward_margin"], np.sum(weights * margins))
        np.testing.assert_allclose(sums.metrics["reward_accuracy"], np.sum(weights * (margins > 0)))


@pytest.mark.parametrize("config", CONFIGS)
def test_gradient_is_that_of_finite_differences(config):
    policy, base, tokens, weights = numbers(1)
    with jax.enable_x64(True):
        rest = [jnp.asarray(x) for x in (base, tokens, weights)]
        grad = jax.grad(lambda p: dpo_loss(p, *rest, config).total)(jnp.asarray(policy))
    step = 1e-6
    for place in np.ndindex(policy.shape):
        up, down = policy.copy(), policy.copy()
        up[place] += step
        down[place] -= step
        change = reference(up, base, tokens, weights, config)
        change -= reference(down, base, tokens, weights, config)
        np.testing.assert_allclose(grad[place], change / (2 * step), rtol=1e-5, atol=1e-8)


def test_better_answers_are_pushed_up_and_worse_ones_down():
    policy, base, tokens, weights = map(jnp.asarray, numbers(2))
    grad = jax.grad(lambda p: dpo_loss(p, base, tokens, weights, DpoConfig()).total)(policy)
    there = np.asarray(weights) > 0
    assert (np.asarray(grad)[there][:, 0] < 0).all()
    assert (np.asarray(grad)[there][:, 1] > 0).all()
    assert not np.asarray(grad)[~there].any()


def test_policy_equal_to_the_reference_gives_log_2():
    policy, _, tokens, weights = map(jnp.asarray, numbers(3))
    sums = dpo_loss(policy, policy, tokens, weights, DpoConfig(label_smoothing=0.1))
    np.testing.assert_allclose(sums.total / sums.weight, np.log(2), rtol=1e-6)
    assert float(sums.metrics["reward_margin"]) == 0
    assert float(sums.metrics["reward_accuracy"]) == 0


def test_the_reference_is_constant():
    policy, base, tokens, weights = map(jnp.asarray, numbers(4))
    grad = jax.grad(lambda b: dpo_loss(policy, b, tokens, weights, DpoConfig()).total)(base)
    assert not np.asarray(grad).any()


@pytest.mark.parametrize(
    "values, words",
    [
        ({"beta": 0}, "beta=0"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"sft_weight": -1}, "sft_weight=-1"),
        ({"reference": "never"}, "'never'.*step, cached"),
    ],
)
def test_settings_out_of_range(values, words):
    with pytest.raises(ValueError, match=words):
        DpoConfig(**values)
