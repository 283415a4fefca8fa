"""Int8 and flat kernels against float64 products, within the bounds that their roundings give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.models.projection import FlatKernel, product
from pangu_jax.models.quantized import MODES, int8_product, quantize, quantize_rows

# The decoder's equations with shapes of x and of the kernel: B=2, T=3, D=6, N=4, K=2, H=4, F=10.
EQUATIONS = {
    "q": ("btd,dnh->btnh", (2, 3, 6), (6, 4, 4)),
    "k": ("btd,dnh->btnh", (2, 3, 6), (6, 2, 4)),
    "o": ("btnh,nhd->btd", (2, 3, 4, 4), (4, 4, 6)),
    "gate": ("btd,df->btf", (2, 3, 6), (6, 10)),
    "down": ("btf,fd->btd", (2, 3, 10), (10, 6)),
    "one_row": ("btd,dnh->btnh", (1, 1, 6), (6, 4, 4)),
    "one_head": ("btnh,nhd->btd", (2, 3, 1, 4), (1, 4, 6)),
    "into_one_head": ("btd,dnh->btnh", (2, 3, 6), (6, 1, 4)),
}
NUM_INPUTS = {"o": 2, "one_head": 2}
FLOAT = 2e-6  # float32 sums over at most 16 inputs, relative to the sum of magnitudes


def draw(name, seed=0, scale=1.0):
    equation, *shapes = EQUATIONS[name]
    rng = np.random.default_rng(seed)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return equation, x * np.float32(scale), w


def wide(*arrays):
    return (np.asarray(array, np.float64) for array in arrays)


@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e20]))
def test_quantised_weights_are_half_a_step_away_at_most(seed, scale):
    w = np.random.default_rng(seed).normal(size=(7, 3, 4)).astype(np.float32) * np.float32(scale)
    kernel = quantize(w, 1)
    assert kernel.q.dtype == jnp.int8 and kernel.shape == w.shape
    assert np.abs(np.asarray(kernel.q, np.int32)).max(axis=1).tolist() == [127] * 12
    step = np.abs(w).max(axis=0) / 127
    error = np.abs(np.asarray(kernel.dequantized(), np.float64) - w)
    assert (error <= step * (0.5 + 1e-5)).all()
    assert (error > step * 0.3).any()  # it does round


def test_zero_outputs_and_rows_stay_zero():
    equation, x, w = draw("gate")
    w[:, 3] = 0
    x[0, 1] = 0
    for mode in MODES:
        kernel = quantize(w, 1, mode)
        np.testing.assert_array_equal(np.asarray(kernel.dequantized())[:, 3], 0)
        y = np.asarray(product(equation, x, kernel))
        np.testing.assert_array_equal(y[..., 3], 0)
        np.testing.assert_array_equal(y[0, 1], 0)
        assert np.isfinite(y).all()


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("mode,step", [("weight_only", 1 / 32258), ("dynamic", 1 / 127)])
def test_int8_products_are_within_the_rounding_of_activations(name, mode, step):
    """Each activation is half a step of its row's largest entry away at most."""
    for seed, scale in ((0, 1.0), (1, 1e-6), (2, 1e6)):
        equation, x, w = draw(name, seed, scale)
        kernel = quantize(w, NUM_INPUTS.get(name, 1), mode)
        found = np.asarray(product(equation, x, kernel), np.float64)
        values, weight = wide(x, kernel.dequantized())
        expected = np.einsum(equation, values, weight)
        assert found.shape == expected.shape
        axes = tuple(range(2, x.ndim))
        largest = np.broadcast_to(np.abs(values).max(axis=axes, keepdims=True), x.shape)
        bound = np.einsum(equation, largest * step / 2, np.abs(weight))
        slack = FLOAT * np.einsum(equation, np.abs(values), np.abs(weight))
        assert (np.abs(found - expected) <= bound + slack).all()


def test_dynamic_is_coarser_than_weight_only():
    equation, x, w = draw("q")
    errors = []
    for mode in MODES:
        kernel = quantize(w, 1, mode)
        expected = np.einsum(equation, *wide(x, kernel.dequantized()))
        errors.append(np.abs(np.asarray(product(equation, x, kernel)) - expected).max())
    assert errors[0] * 30 < errors[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_row_alone_gives_what_it_gives_in_a_batch(mode):
    """Integer sums are the same; XLA may multiply by the scales in another order (few ulp)."""
    equation, x, w = draw("q")
    kernel = quantize(w, 1, mode)
    together = np.asarray(product(equation, x, kernel))
    for b in range(2):
        for t in range(3):
            alone = product(equation, x[b : b + 1, t : t + 1], kernel)
            np.testing.assert_allclose(np.asarray(alone)[0, 0], together[b, t], rtol=2**-21)


def test_both_ways_of_weight_only_agree():
    """The floats that devices use and the two int8 terms of the CPU."""
    from pangu_jax.models.quantized import _as_floats, _in_two_terms

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 40)).astype(np.float32)
    q = rng.integers(-127, 128, (9, 40)).astype(np.int8)
    floats = np.asarray(_as_floats(rows, q), np.float64)
    np.testing.assert_allclose(floats, rows.astype(np.float64) @ q.T, rtol=1e-5, atol=1e-3)
    bound = np.abs(rows).max(1, keepdims=True) / 32258 / 2 * np.abs(q.astype(np.float64)).sum(1)
    assert (np.abs(np.asarray(_in_two_terms(rows, q)) - floats) <= bound + 1e-3).all()


def test_bfloat16_activations_keep_their_type():
    equation, x, w = draw("down")
    x = x.astype(jnp.bfloat16)
    y = int8_product(jnp.asarray(x), quantize(w, 1))
    assert y.dtype == jnp.bfloat16
    expected = np.einsum(equation, *wide(x, quantize(w, 1).dequantized()))
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=2e-3)


def test_rows_are_scaled_to_127_each():
    x = np.array([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0], [3e-8, 0, 0]], np.float32)
    q, scale = quantize_rows(x)
    np.testing.assert_array_equal(q, [[32, -127, 64], [0, 0, 0], [127, 0, 0]])
    np.testing.assert_allclose(scale[:, 0], [2 / 127, 1 / 127, 3e-8 / 127], rtol=1e-6)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="int8 mode 'fast' is unknown; allowed: weight_only, dyn"):
        quantize(np.ones((2, 2)), 1, "fast")


@pytest.mark.parametrize("name", EQUATIONS)
def test_flat_kernels_are_the_weight(name):
    equation, x, w = draw(name)
    inputs = int(np.prod(w.shape[: NUM_INPUTS.get(name, 1)]))
    kernel = FlatKernel(jnp.asarray(w).reshape(inputs, -1), w.shape)
    expected = np.einsum(equation, *wide(x, w))
    found = product(equation, jnp.asarray(x), kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, product(equation, x, jnp.asarray(w)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_short_flat_kernels_sum_in_float32(rows):
    """4,096 ones sum to 256 in bfloat16 (256 + 1 rounds to 256), to 4,096 in float32."""
    x = jnp.ones((1, rows, 4096), jnp.float32)
    kernel = FlatKernel(jnp.ones((4096, 2), jnp.bfloat16), (4096, 2))
    y = product("btd,df->btf", x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, np.full((1, rows, 2), 4096.0))


def test_kernels_pass_through_jit_as_arguments():
    equation, x, w = draw("o")
    flat = FlatKernel(jnp.asarray(w).reshape(16, -1), w.shape)
    for kernel in (flat, quantize(w, 2), quantize(w, 2, "dynamic")):
        jitted = jax.jit(lambda x, kernel: product(equation, x, kernel))
        np.testing.assert_allclose(
            jitted(x, kernel), product(equation, x, kernel), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("mode", MODES)
def test_gradients_pass_straight_through_the_rounding_of_activations(mode):
    draw = np.random.default_rng(3)
    kernel = quantize(draw.normal(size=(12, 3, 4)).astype(np.float32), 1, mode)
    x = draw.normal(size=(2, 5, 12)).astype(np.float32)
    dy = draw.normal(size=(2, 5, 3, 4)).astype(np.float32)
    found = jax.grad(lambda x: jnp.sum(int8_product(x, kernel) * dy))(x)
    expected = np.einsum("btnh,inh->bti", dy, np.asarray(kernel.dequantized()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
