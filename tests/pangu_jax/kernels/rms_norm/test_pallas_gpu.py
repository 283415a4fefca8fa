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
from pangu_jax.kernels.rms_norm import pallas_gpu, pallas_gpu_rows, rms_norm
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


def both(function):
    """(arguments, cotangents) -> (outputs, gradients by all arguments)."""

    def outputs_and_gradients(args, cotangents):
        out, pull = jax.vjp(function, *args)
        return out, pull(cotangents)

    return outputs_and_gradients


def run(function, args, dtype, gain_dtype):
    """All outputs, and gradients by all arguments, as NumPy float64.

    `function` is of the arrays, or `jax.jit(both(..))` of it where it runs more than once.
    """
    compiled = function if hasattr(function, "lower") else jax.jit(both(function))
    args = [jnp.asarray(a, dtype if a.ndim > 1 else gain_dtype) for a in args]
    rng = np.random.default_rng(1)
    count = 1 if len(args) == 2 else 2
    cotangents = tuple(jnp.asarray(rng.normal(size=args[0].shape), dtype) for _ in range(count))
    out, gradients = compiled(args, cotangents)
    assert [g.dtype for g in gradients] == [a.dtype for a in args]
    return [np.asarray(x, np.float64) for x in (*out, *gradients)]


def assert_close(got, want, tolerance):
    for place, (a, b) in enumerate(zip(got, want, strict=True)):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < tolerance, f"array {place}: error {error:.1e} of the largest entry"


@pytest.mark.parametrize(
    "form, rows, lines_of_a_group, stages",
    [
        *((form, 14, 4, 4) for form in FORMS),
        ("step", 7, 2, 2),
        ("step", 14, 4, 1),
        ("norm", 9, 2, 2),
    ],
)
def test_interpret_matches_float64_definition(form, rows, lines_of_a_group, stages, monkeypatch):
    """Three blocks of rows, the last with fewer; more rows in a block than ring slots."""
    monkeypatch.setattr(pallas_gpu_rows, "_MAX_STAGES", stages)
    monkeypatch.setattr(pallas_gpu_rows, "_PROCESSORS", 3)
    monkeypatch.setattr(pallas_gpu_rows, "_MAX_BLOCKS", 1)
    monkeypatch.setattr(pallas_gpu_rows, "_MAX_LINES", lines_of_a_group)
    monkeypatch.setattr(pallas_gpu_rows, "_CHUNK", 2)
    args = arguments(form, rows, 512)
    with jax.enable_x64(True):
        want = run(function(form, False), args, jnp.float64, jnp.float64)
    got = run(function(form, True, interpret=True), args, jnp.float32, jnp.float32)
    assert_close(got, want, 2e-6)


def spec_of(lines, rows=1, dtype="float32"):
    return pallas_gpu_rows.Spec(EPS, True, rows, lines, np.dtype(dtype), True)


@pytest.mark.parametrize("lines", [1, 5, 17, 40, 60, 96, 256])
def test_chunks_of_the_groups_cover_a_row_once(lines):
    spec = spec_of(lines)
    places = [c.start + n for c in spec.chunks for n in range(c.size)]
    assert places == list(range(spec.slice)) and len({c.size for c in spec.chunks}) == 1
    assert spec.slice * spec.groups == lines


@pytest.mark.parametrize("rows", [1, 131, 132, 133, 8192, 10001])
@pytest.mark.parametrize("arrays, outputs, gains, sums", [(1, 1, 1, 0), (4, 2, 2, 2)])
def test_blocks_cover_the_rows(rows, arrays, outputs, gains, sums):
    how = pallas_gpu_rows.plan(spec_of(60, rows, "bfloat16"), arrays, outputs, gains, sums)
    assert how.share * (how.blocks - 1) < rows <= how.share * how.blocks


@pytest.mark.parametrize("lines", [16, 60, 96])
def test_as_many_bytes_are_in_flight_as_the_memory_needs(lines):
    """About 48 KiB per multiprocessor, read and written; one row at the very least."""
    spec = spec_of(lines, 16384, "bfloat16")
    row = lines * 128 * 2
    kernels = ((1, 1, 1, 0), (2, 1, 1, 1), (2, 2, 2, 0), (3, 1, 1, 1), (4, 2, 2, 2))
    for arrays, outputs, gains, sums in kernels:
        how = pallas_gpu_rows.plan(spec, arrays, outputs, gains, sums)
        assert how.stages >= 2
        rows, moved = (how.stages - 1) * how.blocks / 132, (arrays + outputs) * row
        assert rows > 0.98
        assert 36 * 1024 < rows * moved < max(64 * 1024, 1.01 * moved)


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
    [
        (8192, 2048, jnp.bfloat16), (1000, 7680, jnp.bfloat16), (8192, 12288, jnp.bfloat16),
        (77, 640, jnp.float32),
    ],
)  # fmt: skip
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
    for width, message in ((32768, "shared memory"), (128 * 37, "does not divide")):
        with pytest.raises(NotImplementedError, match=message):
            step, args = training_call("step", 4, width, jnp.float32)
            step.trace(*args)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows, width", [(5, 128), (1000, 640), (2000, 2048), (600, 7680)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_gpu_matches_float32_definition(hopper, form, rows, width, dtype, tolerance):
    compare_on_device(form, rows, width, dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_gpu_serves_the_width_of_the_135b_model(hopper, form):
    compare_on_device(form, 500, 12288, "bfloat16", 2e-2)


def compare_on_device(form, rows, width, dtype, tolerance):
    args = arguments(form, rows, width)
    want = run(function(form, False), args, dtype, jnp.float32)
    compiled = jax.jit(both(function(form, True)))
    got = run(compiled, args, dtype, jnp.float32)
    assert_close(got, want, tolerance)
    # No block adds into memory of another: a second run must give the same bits.
    for a, b in zip(got, run(compiled, args, dtype, jnp.float32), strict=True):
        np.testing.assert_array_equal(a, b)
