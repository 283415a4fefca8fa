"""Mosaic GPU kernels of RMSNorm and the residual step.

Without a GPU: interpret mode against the float64 definition, lowering for CUDA, and, where the CUDA
plugin and ptxas are installed, compilation for an H100. With a Hopper GPU, `pytest -m gpu` (and
JAX_PLATFORMS=cuda) compares the kernels with the definition on the device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax.experimental.pallas.mosaic_gpu", reason="this JAX has no Mosaic GPU")

from pangu_jax.kernels.implementation import ImplementationUnavailableError
from pangu_jax.kernels.rms_norm import pallas_gpu, rms_norm
from pangu_jax.kernels.rms_norm.reference import (
    fused_sandwich_step_reference,
    rms_norm_reference,
)

EPS = 1e-4
FORMS = ("norm", "step", "step_without_post")


def function(form, kernel, **static):
    """The form as a function of its arrays, by the kernel or by the definition."""
    norm = pallas_gpu.rms_norm_pallas_gpu if kernel else rms_norm_reference
    step = pallas_gpu.fused_sandwich_step_pallas_gpu if kernel else fused_sandwich_step_reference
    return {
        "norm": lambda x, gain: (norm(x, gain, eps=EPS, **static),),
        "step": lambda x, branch, gain, post: step(x, branch, post, gain, eps=EPS, **static),
        "step_without_post": lambda x, branch, gain: step(x, branch, None, gain, eps=EPS, **static),
    }[form]


def arguments(form, rows, width):
    rng = np.random.default_rng(0)
    x, branch = rng.normal(size=(rows, width)), rng.normal(size=(rows, width)) * 0.1
    gain, post = rng.normal(size=(2, width))
    return {
        "norm": [x, gain],
        "step": [x, branch, gain, post],
        "step_without_post": [x, branch, gain],
    }[form]


def run(function, args, dtype, gain_dtype):
    """All outputs, and gradients by all arguments, as NumPy float64."""
    args = [jnp.asarray(a, dtype if a.ndim > 1 else gain_dtype) for a in args]

    @jax.jit
    def both(*args):
        out, pull = jax.vjp(function, *args)
        rng = np.random.default_rng(1)
        return out, pull(tuple(jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in out))

    out, gradients = both(*args)
    assert [g.dtype for g in gradients] == [a.dtype for a in args]
    return [np.asarray(x, np.float64) for x in (*out, *gradients)]


def assert_close(got, want, tolerance):
    for place, (a, b) in enumerate(zip(got, want, strict=True)):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < tolerance, f"array {place}: error {error:.1e} of the largest entry"


@pytest.mark.parametrize("form", FORMS)
def test_interpret_matches_float64_definition(form, monkeypatch):
    """Three blocks of rows, the last with fewer; more rows in a block than ring slots."""
    monkeypatch.setattr(pallas_gpu, "_BLOCKS", 3)
    monkeypatch.setattr(pallas_gpu, "_CHUNK", 2)
    args = arguments(form, 14, 512)
    with jax.enable_x64(True):
        want = run(function(form, False), args, jnp.float64, jnp.float64)
    got = run(function(form, True, interpret=True), args, jnp.float32, jnp.float32)
    assert_close(got, want, 2e-6)


@pytest.mark.parametrize("lines", [1, 5, 17, 40, 60, 256])
def test_chunks_cover_a_row_once(lines):
    spec = pallas_gpu._Spec(EPS, True, 1, lines, np.dtype("float32"), True)
    places = [c.start + n for c in spec.chunks for n in range(c.size)]
    assert places == list(range(lines)) and len({c.size for c in spec.chunks}) == 1


@pytest.mark.parametrize("rows", [1, 263, 264, 265, 8192, 10001])
def test_blocks_cover_the_rows(rows):
    spec = pallas_gpu._Spec(EPS, True, rows, 1, np.dtype("float32"), True)
    assert spec.share * (spec.blocks - 1) < rows <= spec.share * spec.blocks


def training_call(form, rows, width, dtype, sharding=None):
    def step(*args):
        out, pull = jax.vjp(function(form, True), *args)
        return out, pull(out)

    return jax.jit(step), [
        jax.ShapeDtypeStruct(a.shape, dtype if a.ndim > 1 else jnp.float32, sharding=sharding)
        for a in arguments(form, rows, width)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_lowers_for_cuda(form):
    step, args = training_call(form, 1000, 640, jnp.bfloat16)
    text = step.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 2  # One each way.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "rows, width, dtype",
    [(8192, 2048, jnp.bfloat16), (1000, 7680, jnp.bfloat16), (77, 640, jnp.float32)],
)
def test_compiles_for_h100_without_a_gpu(h100, form, rows, width, dtype):
    step, args = training_call(form, rows, width, dtype, h100)
    text = step.lower(*args).compile().as_text()
    assert text.count('custom_call_target="mosaic_gpu') == 2


def test_what_it_cannot_do_is_said():
    for shape, message in (((2, 100), "multiples of 128"), ((0, 128), "empty batch")):
        with pytest.raises(ImplementationUnavailableError, match=message):
            rms_norm(jnp.zeros(shape), jnp.ones(shape[-1]), eps=EPS, implementation="pallas_gpu")
    with pytest.raises(NotImplementedError, match="they must be equal"):
        function("step_without_post", True)(
            jnp.zeros((2, 128)), jnp.zeros((2, 128), jnp.bfloat16), jnp.ones(128)
        )
    with pytest.raises(NotImplementedError, match="shared memory"):
        step, args = training_call("step", 4, 32768, jnp.float32)
        step.trace(*args)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows, width", [(5, 128), (1000, 640), (2000, 2048), (600, 7680)])
def test_gpu_matches_float32_definition(hopper, form, rows, width):
    args = arguments(form, rows, width)
    for dtype, tolerance in ((jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)):
        got = run(function(form, True), args, dtype, jnp.float32)
        want = run(function(form, False), args, dtype, jnp.float32)
        assert_close(got, want, tolerance)
        # No block adds into memory of another: a second run must give the same bits.
        again = run(function(form, True), args, dtype, jnp.float32)
        for a, b in zip(got, again, strict=True):
            np.testing.assert_array_equal(a, b)
