"""TPU kernels of RMSNorm and the residual step: interpret mode against the float64 definition,
lowering for a TPU, and, where libtpu is installed, compilation for a v5p that is not here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.kernels.implementation import ImplementationUnavailableError
from pangu_jax.kernels.rms_norm import fused_sandwich_step, rms_norm
from pangu_jax.kernels.rms_norm.pallas_tpu import _BLOCK_BYTES

EPS = 1e-4


def numbers(rows, width, count):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(*rows, width)) * 10.0**-n for n in range(count)]
    return arrays, [rng.normal(size=width) for _ in range(2)]


def norm(x, gain, implementation):
    return (rms_norm(x, gain, eps=EPS, implementation=implementation),)


def step(x, branch, post, gain, implementation):
    return fused_sandwich_step(x, branch, post, gain, eps=EPS, implementation=implementation)


def step_without_post(x, branch, gain, implementation):
    return fused_sandwich_step(x, branch, None, gain, eps=EPS, implementation=implementation)


def arguments(function, rows, width):
    arrays, gains = numbers(rows, width, 1 if function is norm else 2)
    return [*arrays, *(gains if function is step else gains[:1])]


def values_and_gradients(function, args, dtypes, implementation):
    """All outputs, and gradients by all arguments, as NumPy float64."""
    args = [jnp.asarray(a, dtype) for a, dtype in zip(args, dtypes, strict=True)]

    @jax.jit
    def both(*args):
        out, pull = jax.vjp(lambda *a: function(*a, implementation), *args)
        rng = np.random.default_rng(1)
        return out, pull(tuple(jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in out))

    out, gradients = both(*args)
    assert [g.dtype for g in gradients] == [a.dtype for a in args]
    return [np.asarray(x, np.float64) for x in (*out, *gradients)]


def assert_close(got, want, tolerance):
    for place, (a, b) in enumerate(zip(got, want, strict=True)):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < tolerance, f"array {place}: error {error:.1e} of the largest entry"


@pytest.mark.parametrize("function", [norm, step, step_without_post])
@pytest.mark.parametrize("rows, width", [((2, 5), 12), ((37,), _BLOCK_BYTES // 64)])
def test_interpret_matches_float64_definition(function, rows, width):
    """The second shape takes three blocks of rows, the last of them partly past the end."""
    args = arguments(function, rows, width)
    with jax.enable_x64(True):
        want = values_and_gradients(function, args, [jnp.float64] * len(args), "xla")
    got = values_and_gradients(function, args, [jnp.float32] * len(args), "interpret")
    assert_close(got, want, 2e-6)


@pytest.mark.parametrize("function", [norm, step, step_without_post])
def test_bfloat16_rows_with_float32_gains_equal_xla(function):
    """Same roundings as the definition: the stream once, the normed stream once."""
    args = arguments(function, (4, 8), 128)
    dtypes = [jnp.bfloat16 if a.ndim > 1 else jnp.float32 for a in args]
    got = values_and_gradients(function, args, dtypes, "interpret")
    want = values_and_gradients(function, args, dtypes, "xla")
    outputs = 1 if function is norm else 2
    assert_close(got[:outputs], want[:outputs], 4e-3)
    assert_close(got[outputs:], want[outputs:], 2e-2)


def test_gradient_of_the_gain_is_summed_in_float32():
    """4,096 equal summands in bfloat16 rows: a bfloat16 sum would stop at 256."""
    x = jnp.ones((4096, 128), jnp.bfloat16)
    _, pull = jax.vjp(lambda gain: norm(x, gain, "interpret")[0], jnp.ones(128))
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], 4096, rtol=1e-3)


def training_call(function, rows, width, dtype):
    def training(*args):
        out, pull = jax.vjp(lambda *a: function(*a, "pallas_tpu"), *args)
        return out, pull(out)

    return training, [
        jax.ShapeDtypeStruct(a.shape, dtype if a.ndim > 1 else jnp.float32)
        for a in arguments(function, rows, width)
    ]


@pytest.mark.parametrize("function", [norm, step, step_without_post])
@pytest.mark.parametrize("width", [576, 2048])
def test_lowers_for_tpu(v5p, function, width):
    training, args = training_call(function, (3, 100), width, jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(v5p):
        lowered = jax.jit(training).trace(*args).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 2  # One each way.


def test_what_it_cannot_do_is_said():
    with pytest.raises(ImplementationUnavailableError, match="not float16"):
        norm(jnp.zeros((2, 4), jnp.float16), jnp.ones(4), "pallas_tpu")
    with pytest.raises(ImplementationUnavailableError, match="no rows"):
        norm(jnp.zeros((0, 4)), jnp.ones(4), "pallas_tpu")


@pytest.mark.tpu_aot
@pytest.mark.parametrize("function", [norm, step, step_without_post])
@pytest.mark.parametrize("width", [50, 576, 7680, 16384])
def test_compiles_ahead_of_time_for_v5p(compile_for_v5p, function, width):
    for dtype in (jnp.bfloat16, jnp.float32):
        training, args = training_call(function, (2, 200), width, dtype)
        text = compile_for_v5p(training, *args)
        assert text.count('custom_call_target="tpu_custom_call"') == 2
