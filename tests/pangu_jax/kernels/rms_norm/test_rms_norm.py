"""RMSNorm and the fused residual step against independent NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.kernels.implementation import ImplementationUnavailableError
from pangu_jax.kernels.rms_norm import fused_sandwich_step, rms_norm

IMPLEMENTATIONS = ("auto", "xla")


def norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def inputs(dtype=np.float64, shape=(3, 5, 8)):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape), rng.normal(size=shape) * 1e-3]
    arrays += [rng.normal(size=shape[-1:]) for _ in range(2)]
    return [jnp.asarray(a, dtype) for a in arrays]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("post", [True, False])
def test_forward_in_float64(implementation, post):
    with jax.enable_x64(True):
        x, branch, post_scale, scale = inputs()
        eps = 1e-5
        got = rms_norm(branch, post_scale, eps=eps, implementation=implementation)
        np.testing.assert_allclose(got, norm(*map(np.asarray, (branch, post_scale)), eps), 1e-13)
        stream, following = fused_sandwich_step(
            x, branch, post_scale if post else None, scale, eps=eps, implementation=implementation
        )
        x, branch, post_scale, scale = map(np.asarray, (x, branch, post_scale, scale))
        want = x + (norm(branch, post_scale, eps) if post else branch)
        np.testing.assert_allclose(stream, want, rtol=1e-13)
        np.testing.assert_allclose(following, norm(want, scale, eps), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_equal_finite_differences(implementation):
    with jax.enable_x64(True):
        args = inputs(shape=(2, 4))

        def total(*args):
            stream, following = fused_sandwich_step(*args, eps=1e-3, implementation=implementation)
            return jnp.sum(jnp.sin(stream) + following**3)

        grads = jax.grad(total, argnums=(0, 1, 2, 3))(*args)
        rng = np.random.default_rng(1)
        directions = [rng.normal(size=a.shape) for a in args]
        step = 1e-6
        ahead = total(*(a + step * d for a, d in zip(args, directions, strict=True)))
        behind = total(*(a - step * d for a, d in zip(args, directions, strict=True)))
        slope = sum(float(jnp.sum(g * d)) for g, d in zip(grads, directions, strict=True))
        assert slope == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-7)


def test_bfloat16_is_summed_in_float32():
    """2048 equal entries: a bfloat16 sum of squares stops growing at 256."""
    x = jnp.full((1, 2048), 3.0, jnp.bfloat16)
    y = rms_norm(x, jnp.ones(2048), eps=1e-6)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), 1.0)


def test_residual_sum_is_rounded_once_and_what_follows_sees_it_rounded():
    x, branch, post_scale, scale = inputs(jnp.bfloat16)
    stream, following = fused_sandwich_step(x, branch, post_scale, scale, eps=1e-6)
    wide = np.asarray(x, np.float32) + norm(
        np.asarray(branch, np.float32), np.asarray(post_scale, np.float32), 1e-6
    )
    np.testing.assert_array_equal(stream, wide.astype(jnp.bfloat16))
    np.testing.assert_array_equal(following, rms_norm(stream, scale, eps=1e-6))


def test_eps_keeps_a_zero_row_finite():
    args = inputs(jnp.float32)
    value, grad = jax.value_and_grad(lambda x: rms_norm(x, args[2], eps=1e-6).sum())(args[0] * 0)
    assert value == 0 and np.isfinite(grad).all()


def test_arguments_that_do_not_fit():
    x, branch, post_scale, scale = inputs(jnp.float32)
    with pytest.raises(ValueError, match="scale has shape"):
        rms_norm(x, scale[:-1], eps=1e-6)
    with pytest.raises(ValueError, match="branch has shape"):
        fused_sandwich_step(x, branch[:1], post_scale, scale, eps=1e-6)
    with pytest.raises(ImplementationUnavailableError, match="pallas_tpu"):
        rms_norm(x.astype(jnp.float16), scale, eps=1e-6, implementation="pallas_tpu")
