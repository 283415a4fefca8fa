"""Time buckets against the two formulas, and Toeplitz maps against loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recsys_jax.kernels.silu_attention import bucket_thresholds, time_bucket
from recsys_jax.kernels.silu_attention import position as position_lib


def exact(dt):
    return np.clip(np.floor(np.log(np.maximum(np.abs(dt), 1.0)) / 0.301), 0, 128).astype(int)


def released(dt):
    """The released code's formula in float32."""
    log = np.log(np.maximum(np.abs(dt), 1).astype(np.float32))
    return np.clip((log / np.float32(0.301)).astype(np.int64), 0, 128)


def around_thresholds(width):
    theta = bucket_thresholds().astype(np.int64)
    dt = (theta[:, None] + np.arange(-width, width + 1)).ravel()
    return dt[(dt >= 0) & (dt < 2**31)]


def test_equals_the_released_formula_up_to_100_000_seconds():
    dt = np.arange(100_001)
    got = np.asarray(time_bucket(jnp.asarray(dt, jnp.int32)))
    np.testing.assert_array_equal(got, exact(dt))
    np.testing.assert_array_equal(got, released(dt))


def test_exact_at_every_threshold_and_far_out():
    rng = np.random.default_rng(0)
    dt = np.concatenate([around_thresholds(60), rng.integers(0, 2**31, 200_000), [2**31 - 1]])
    dt = np.concatenate([dt, -dt])
    got = np.asarray(time_bucket(jnp.asarray(dt, jnp.int32)))
    np.testing.assert_array_equal(got, exact(dt))


def test_released_float32_formula_differs_only_beside_thresholds():
    """A float32 cannot tell large neighbours apart: that, and nothing else, is the difference."""
    dt = around_thresholds(60)
    differ = dt[released(dt) != exact(dt)]
    assert differ.size and differ.min() == 417_901
    gap = np.abs(differ[:, None] - bucket_thresholds()[None].astype(np.int64)).min(1)
    assert (gap <= np.maximum(1, differ * 2e-6)).all()


def test_known_values():
    dt = jnp.asarray([0, 1, 2, 60, 3600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400], jnp.int32)
    assert time_bucket(dt).tolist() == [0, 0, 2, 13, 27, 37, 44, 49, 57]
    assert bucket_thresholds().size == 71


@pytest.mark.parametrize("num_buckets", [0, 1, 5, 70, 71, 72])
def test_clipped_to_the_table(num_buckets):
    dt = np.concatenate([np.arange(50), [10**6, 2**31 - 1]])
    got = np.asarray(time_bucket(jnp.asarray(dt, jnp.int32), num_buckets))
    np.testing.assert_array_equal(got, np.minimum(exact(dt), num_buckets))


@pytest.mark.parametrize("start, rows, columns", [(0, 1, 1), (0, 4, 4), (3, 2, 5), (2, 3, 7)])
def test_toeplitz_and_its_transpose(start, rows, columns):
    rng = np.random.default_rng(0)
    weights, matrix = rng.normal(size=8), rng.normal(size=(rows, columns))
    dense, sums = np.zeros((rows, columns)), np.zeros(rows + columns - 1)
    for r, c in np.ndindex(rows, columns):
        dense[r, c] = weights[start + r - c] if c <= start + r else 0
        sums[r - c + columns - 1] += matrix[r, c]
    got = position_lib.toeplitz_rows(jnp.asarray(weights, jnp.float32), start, rows, columns)
    np.testing.assert_allclose(got, dense, rtol=1e-6)
    got = position_lib.diagonal_sums(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(got, sums, rtol=1e-5, atol=1e-6)


def test_position_channel_compiles_without_gather_or_scatter():
    v, w = jnp.ones((2, 130, 1, 4)), jnp.ones(130)
    text = jax.jit(jax.grad(lambda w: (position_lib.position_channel(v, w) ** 2).sum())).lower(w)
    assert "gather" not in text.as_text() and "scatter" not in text.as_text()
