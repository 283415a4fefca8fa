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
from pangu_jax.kernels.segment_attention.pallas_gpu import (
    attend_backward_pallas_gpu,
    attend_forward_pallas_gpu,
    segment_attention_pallas_gpu,
)
from pangu_jax.kernels.segment_attention.pallas_gpu_common import prepare
from pangu_jax.kernels.segment_attention.pallas_gpu_wide import Config, prepare_ids, spans
from pangu_jax.kernels.segment_attention.reference import segment_attention_reference, visible
from pangu_jax.kernels.segment_attention.xla import attend_backward_xla, attend_forward_xla
from pangu_jax.models.remat import checkpointed

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


def run(function, args, dtype, jit=jax.jit, **static):
    """Output and gradients by q, k and v, as NumPy float64."""
    args = {n: jnp.asarray(x, None if x.dtype == np.int32 else dtype) for n, x in args.items()}
    inputs = [args.pop(name) for name in "qkv"]

    @jit
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


WIDE_CASES = {
    # Documents that end inside a block of 128 queries, an empty last block, two heads per key head.
    "packed_grouped": (arguments(((150, 60),), 300, 2, 1, 5), {}, Config(schedule="turns")),
    "permuted_window": (
        arguments(((120, 70),), 200, 1, 1, 8, permuted=True),
        {"window": 50},
        Config(block_k=64, dkv_block_q=128),
    ),
    # Three blocks of keys through two slots, whole ones among them.
    "row_order": (arguments(None, 300, 1, 1, 4), {}, Config(schedule="pingpong")),
}


@pytest.mark.parametrize("name", WIDE_CASES)
def test_wide_kernels_in_interpret_mode_match_float64_definition(name):
    args, static, config = WIDE_CASES[name]
    with jax.enable_x64(True):
        want = run(segment_attention_reference, args, jnp.float64, scale=0.3, **static)
    kernel = functools.partial(segment_attention_pallas_gpu, tiles=config, interpret=True)
    # One program per kernel: several with threads of their own can starve each other on a CPU.
    got = run(kernel, args, jnp.float32, jit=lambda f: f, scale=0.3, **static)
    assert_close(got, want, 3e-6)
    if "q_segment_ids" in args:
        padding = args["q_segment_ids"] == 0
        assert padding.any() and all((x[padding] == 0).all() for x in got)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("sizes", [(128, 128), (64, 128)])
def test_wide_spans_cover_every_visible_pair(permuted, window, sizes):
    """No visible pair is left out, and none that is hidden goes without a mask."""
    args = arguments(((64, 130, 7), (190,), (), (400,)), 400, 1, 1, 1, permuted)
    segments, positions = args["q_segment_ids"], args.get("q_positions")
    _, ids = prepare_ids((512, 512), segments, segments, positions, positions)
    segments = np.pad(segments, ((0, 0), (0, 112)))
    order = np.broadcast_to(np.arange(512), (4, 512)) if positions is None else np.asarray(ids[2])
    see = np.asarray(visible(segments, segments, order, order, window))
    count, other = 512 // sizes[0], 512 // sizes[1]
    see = see.reshape(4, count, sizes[0], other, sizes[1])
    some, every = see.any((2, 4)), see.all((2, 4))
    for axis in (2, 1):
        first, begin, end, last = np.moveaxis(
            np.asarray(spans(ids, (512, 512), sizes, window, axis)), -1, 0
        )
        assert (first <= begin).all() and (begin <= end).all() and (end <= last).all()
        assert (first < last).all()
        place = np.arange(see.shape[3 if axis == 2 else 1])
        visited = (first[..., None] <= place) & (place < last[..., None])
        unmasked = (begin[..., None] <= place) & (place < end[..., None])
        assert (visited | ~np.moveaxis(some, axis, 2)).all()
        assert (np.moveaxis(every, axis, 2) | ~unmasked).all()
        if not permuted and window is None:  # Then a tile's whole partners are one run.
            assert (unmasked == np.moveaxis(every, axis, 2)).all()


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


@pytest.mark.parametrize("policy, kernels", [("none", 3), ("products", 3), ("nothing", 4)])
def test_remat_runs_the_forward_once_where_its_result_may_be_kept(policy, kernels):
    def call(q, k, v, ids):
        return segment_attention_pallas_gpu(
            q, k, v, q_segment_ids=ids, kv_segment_ids=ids, scale=0.1
        )  # fmt: skip

    @jax.jit
    def gradients(q, k, v, ids):
        run = checkpointed(call, policy)
        total = lambda *x: jnp.sum(jnp.sin(run(*x, ids).astype(jnp.float32)))  # noqa: E731
        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    x = jax.ShapeDtypeStruct((1, 1024, 4, 64), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    text = gradients.trace(x, x, x, ids).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == kernels


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


DEVICE_KERNELS = {
    "narrow": "narrow",
    "plain": Config(schedule="plain"),
    "overlap": Config(schedule="overlap"),
    "turns": Config(schedule="turns", order="tiles"),
    "pingpong": Config(schedule="pingpong", block_k=64, stages=4, dq_stages=3, dkv_stages=3),
}


def compare_on_device(args, tiles, scale, **static):
    """bfloat16 kernels against the definition fed the same numbers, and against themselves."""
    for name in "qkv":
        args[name] = np.asarray(jnp.asarray(args[name], jnp.bfloat16), np.float32)
    kernel = functools.partial(segment_attention_pallas_gpu, tiles=tiles)
    got = run(kernel, args, jnp.bfloat16, scale=scale, **static)
    with jax.default_matmul_precision("highest"):
        want = run(segment_attention_reference, args, jnp.float32, scale=scale, **static)
    assert_close(got, want, 0.02)
    # No block adds into memory of another: a second run must give the same bits.
    again = run(kernel, args, jnp.bfloat16, scale=scale, **static)
    for a, b in zip(got, again, strict=True):
        np.testing.assert_array_equal(a, b)
    return got


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", DEVICE_KERNELS)
@pytest.mark.parametrize("form", ["order", "segments", "positions"])
@pytest.mark.parametrize(
    "length, heads, kv_heads, width, window",
    [(70, 1, 1, 50, None), (300, 6, 2, 64, 100), (1024, 8, 2, 128, None)],
)
def test_gpu_matches_float32_definition(
    hopper, tiles, form, length, heads, kv_heads, width, window
):
    rows = None if form == "order" else ((length // 2, length // 3), (length,), ())
    args = arguments(rows, length, heads, kv_heads, width, form == "positions")
    got = compare_on_device(args, DEVICE_KERNELS[tiles], width**-0.5, window=window)
    if rows is not None:
        padding = args["q_segment_ids"] == 0
        assert all((x[padding] == 0).all() for x in got)


@pytest.mark.gpu
def test_gpu_narrow_heads_take_the_narrow_kernels(hopper):
    compare_on_device(arguments(((35, 23), (70,), ()), 70, 1, 1, 5), None, 0.4)


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", ["narrow", "overlap"])
def test_gpu_parts_match_xla(hopper, tiles):
    """Other keys than queries, as in a ring: more of them, some out of every query's sight."""
    rng = np.random.default_rng(3)
    q, g = (jnp.asarray(rng.normal(size=(2, 200, 4, 128)), jnp.bfloat16) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(2, 330, 2, 128)), jnp.bfloat16) for _ in range(2))
    ids = {
        "q_segment_ids": jnp.asarray(rng.integers(0, 3, (2, 200)), jnp.int32),
        "kv_segment_ids": jnp.asarray(rng.integers(0, 4, (2, 330)), jnp.int32),
        "q_positions": jnp.asarray(rng.integers(0, 500, (2, 200)), jnp.int32),
        "kv_positions": jnp.asarray(rng.integers(0, 500, (2, 330)), jnp.int32),
    }
    settings = {"scale": 128**-0.5, **ids}
    kernel = {"tiles": DEVICE_KERNELS[tiles], **settings}
    out, lse = jax.jit(lambda *x: attend_forward_pallas_gpu(*x, **kernel))(q, k, v)
    wide_inputs = [x.astype(jnp.float32) for x in (q, k, v)]
    with jax.default_matmul_precision("highest"):
        want_out, want_lse = attend_forward_xla(*wide_inputs, **settings)
        state = {"out": want_out, "lse": want_lse, "d_out": g.astype(jnp.float32)}
        want = attend_backward_xla(*wide_inputs, **state, **settings)
    np.testing.assert_array_equal(jnp.isneginf(lse), jnp.isneginf(want_lse))
    seen = ~jnp.isneginf(want_lse)
    np.testing.assert_allclose(lse[seen], want_lse[seen], atol=0.02)
    got = jax.jit(lambda *x: attend_backward_pallas_gpu(*x, **state, **kernel))(q, k, v)
    arrays = [np.asarray(x, np.float64) for x in (out, *got, want_out, *want)]
    assert_close(arrays[:4], arrays[4:], 0.02)
