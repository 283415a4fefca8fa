"""Mosaic GPU kernels of segment attention.

Without a GPU: numbers in interpret mode against the float64 definition, lowering for CUDA, and,
where the CUDA plugin and ptxas are installed, real compilation for an H100. With a Hopper GPU,
`pytest -m gpu` (and JAX_PLATFORMS=cuda) compares the kernels with the definition on the device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax.experimental.pallas.mosaic_gpu", reason="this JAX has no Mosaic GPU")

from pangu_jax.kernels.implementation import ImplementationUnavailableError
from pangu_jax.kernels.segment_attention import segment_attention
from pangu_jax.kernels.segment_attention.pallas_gpu import segment_attention_pallas_gpu
from pangu_jax.kernels.segment_attention.pallas_gpu_common import prepare
from pangu_jax.kernels.segment_attention.reference import segment_attention_reference, visible

TILE = 64


def arguments(rows, length, heads, kv_heads, width, permuted=False):
    """Packed documents of the given lengths, the rest padding (None: no ids); positions only if
    columns are permuted."""
    rng = np.random.default_rng(0)
    batch = 1 if rows is None else len(rows)
    args = {name: rng.normal(size=(batch, length, kv_heads, width)) for name in "kv"}
    args["q"] = rng.normal(size=(batch, length, heads, width))
    if rows is None:
        return args
    ids = np.zeros((batch, length), np.int32)
    for row, lengths in enumerate(rows):
        filled = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        ids[row, : filled.size] = filled
    columns = rng.permutation(length) if permuted else np.arange(length)
    args = {name: x[:, columns] for name, x in args.items()}
    args |= {f"{side}_segment_ids": ids[:, columns] for side in ("q", "kv")}
    if permuted:
        positions = np.tile(columns.astype(np.int32), (batch, 1))
        args |= {f"{side}_positions": positions for side in ("q", "kv")}
    return args


def run(function, args, dtype, **static):
    """Output and gradients by q, k and v, as NumPy float64."""
    args = {n: jnp.asarray(x, None if x.dtype == np.int32 else dtype) for n, x in args.items()}
    inputs = [args.pop(name) for name in "qkv"]

    @jax.jit
    def both(*inputs):
        out, pull = jax.vjp(lambda *x: function(*x, **args, **static), *inputs)
        g = np.random.default_rng(9).normal(size=out.shape)
        return (out, *pull(jnp.asarray(g, out.dtype)))

    return [np.asarray(x, np.float64) for x in both(*inputs)]


def assert_close(got, want, tolerance):
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)
        assert error < tolerance, f"{name}: error {error:.1e} of the largest entry"


CASES = {
    # Three tiles through two ring slots, a document over several tiles, a row's end of padding.
    "packed_grouped": (arguments(((100, 5, 40),), 150, 2, 1, 5), {}),
    "permuted_window": (arguments(((70, 30),), 110, 1, 1, 8, permuted=True), {"window": 20}),
    # The last tile of queries sees all of the first tile of keys.
    "row_order": (arguments(None, 150, 1, 1, 4), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_interpret_matches_float64_definition(name):
    args, static = CASES[name]
    with jax.enable_x64(True):
        want = run(segment_attention_reference, args, jnp.float64, scale=0.3, **static)
    kernel = functools.partial(segment_attention_pallas_gpu, interpret=True)
    got = run(kernel, args, jnp.float32, scale=0.3, **static)
    assert_close(got, want, 3e-6)
    if "q_segment_ids" in args:
        padding = args["q_segment_ids"] == 0
        assert padding.any() and all((x[padding] == 0).all() for x in got)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("window", [None, 70])
def test_tile_ranges_cover_every_visible_pair(permuted, window):
    """Skipping is safe; for documents in row order without a window it is exact as well."""
    args = arguments(((64, 130, 7), (190,), (), (400,)), 400, 1, 1, 1, permuted)
    segments, positions = args["q_segment_ids"], args.get("q_positions")
    ids = prepare((7, 7), (400, 400), segments, segments, positions, positions, window)
    q_span, k_span = (np.asarray(x) for x in ids[2:4])
    order = np.arange(400)[None] if positions is None else positions
    b, t, s = np.nonzero(np.asarray(visible(segments, segments, order, order, window)))
    i, j = t // TILE, s // TILE
    assert (q_span[b, i, 0] <= j).all() and (j < q_span[b, i, 1]).all()
    assert (k_span[b, j, 0] <= i).all() and (i < k_span[b, j, 1]).all()
    if not permuted and window is None:
        pairs = len(set(zip(b.tolist(), i.tolist(), j.tolist(), strict=True)))
        assert (q_span[..., 1] - q_span[..., 0]).sum() == pairs
        assert (k_span[..., 1] - k_span[..., 0]).sum() == pairs


SHAPES = {
    "llama": (2, 4096, 8, 2, 128),
    "smol": (2, 2048, 9, 3, 64),
    "odd": (1, 1000, 4, 4, 50),
}


def training_call(name, with_ids, with_positions, sharding=None):
    """A jitted forward and backward pass, and abstract arguments for it."""
    batch, length, heads, kv_heads, width = SHAPES[name]

    def step(q, k, v, ids):
        given = dict(q_segment_ids=ids, kv_segment_ids=ids) if with_ids else {}
        if with_positions:
            given |= dict(q_positions=ids, kv_positions=ids)
        out, pull = jax.vjp(
            lambda *x: segment_attention_pallas_gpu(*x, **given, scale=0.1), q, k, v
        )
        return out, pull(out)

    shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    q = shape((batch, length, heads, width), jnp.bfloat16)
    kv = shape((batch, length, kv_heads, width), jnp.bfloat16)
    return jax.jit(step), (q, kv, kv, shape((batch, length), jnp.int32))


FORMS = [("llama", True, True), ("smol", True, False), ("odd", False, False)]


@pytest.mark.parametrize("name, with_ids, with_positions", FORMS)
def test_lowers_for_cuda_without_an_array_of_queries_times_keys(name, with_ids, with_positions):
    step, args = training_call(name, with_ids, with_positions)
    text = step.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 3  # Forward, gradient of q, gradients of k and v.
    length = SHAPES[name][1]
    assert f"{length}x{length}" not in text


@pytest.mark.parametrize("name, with_ids, with_positions", FORMS)
def test_compiles_for_h100_without_a_gpu(h100, name, with_ids, with_positions):
    step, args = training_call(name, with_ids, with_positions, h100)
    text = step.lower(*args).compile().as_text()
    assert text.count('custom_call_target="mosaic_gpu') == 3


def test_what_it_cannot_do_is_said():
    for dtype, width, message in (
        (jnp.float32, 64, "float32 inputs"),
        (jnp.bfloat16, 256, "width 256 is above 128"),
    ):
        x = jnp.zeros((1, 8, 1, width), dtype)
        with pytest.raises(ImplementationUnavailableError, match=message):
            segment_attention(x, x, x, scale=1.0, implementation="pallas_gpu")


@pytest.mark.gpu
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize(
    "length, heads, kv_heads, width", [(70, 1, 1, 5), (300, 6, 2, 64), (1024, 8, 2, 128)]
)
def test_gpu_matches_float32_definition(hopper, length, heads, kv_heads, width, permuted):
    """On the device, the bfloat16 kernels against the definition fed the same numbers."""
    rows = ((length // 2, length // 3), (length,), ())
    args = arguments(rows, length, heads, kv_heads, width, permuted)
    scale = width**-0.5
    for name in "qkv":
        args[name] = np.asarray(jnp.asarray(args[name], jnp.bfloat16), np.float32)
    got = run(segment_attention_pallas_gpu, args, jnp.bfloat16, scale=scale)
    with jax.default_matmul_precision("highest"):
        want = run(segment_attention_reference, args, jnp.float32, scale=scale)
    assert_close(got, want, 0.02)
    # No block adds into memory of another: a second run must give the same bits.
    again = run(segment_attention_pallas_gpu, args, jnp.bfloat16, scale=scale)
    for a, b in zip(got, again, strict=True):
        np.testing.assert_array_equal(a, b)
