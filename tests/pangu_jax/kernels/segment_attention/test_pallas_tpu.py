"""TPU kernels of segment attention: numbers in interpret mode against the float64 definition,
lowering for a TPU, and, where libtpu is installed, compilation for a v5p that is not here."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.kernels.implementation import ImplementationUnavailableError
from pangu_jax.kernels.segment_attention import segment_attention
from pangu_jax.kernels.segment_attention.pallas_tpu import (
    segment_attention_interpret,
    segment_attention_pallas_tpu,
)
from pangu_jax.kernels.segment_attention.reference import segment_attention_reference
from pangu_jax.kernels.segment_attention.splash import segment_attention_splash

NAMES = ("out", "dq", "dk", "dv")


def arguments(rows, length, heads, kv_heads, width, order="row", later=0):
    """Packed documents of the given lengths, the rest padding; positions restart if order is
    'given', and columns are shuffled with their ids if it is 'permuted'. `later`: queries are the
    columns from there on."""
    rng = np.random.default_rng(0)
    ids = np.zeros((len(rows), length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
    for row, lengths in enumerate(rows):
        start = 0
        for number, size in enumerate(lengths):
            ids[row, start : start + size] = 3 * number + 2
            positions[row, start : start + size] = np.arange(size)
            start += size
    args = {name: rng.normal(size=(len(rows), length, kv_heads, width)) for name in "kv"}
    args["q"] = rng.normal(size=(len(rows), length, heads, width))
    columns = rng.permutation(length) if order == "permuted" else np.arange(length)
    args = {name: x[:, columns] for name, x in args.items()}
    args["q"] = args["q"][:, later:]
    args |= {"kv_segment_ids": ids[:, columns], "q_segment_ids": ids[:, columns][:, later:]}
    if order != "row":
        args["kv_positions"] = positions[:, columns]
        args["q_positions"] = args["kv_positions"][:, later:]
    return args


def run(function, args, dtype, **static):
    """Output and gradients by q, k and v, as NumPy float64."""
    args = dict(args)
    inputs = [jnp.asarray(args.pop(name), dtype) for name in "qkv"]

    @jax.jit
    def both(*inputs):
        out, pull = jax.vjp(lambda *x: function(*x, **args, **static), *inputs)
        g = np.random.default_rng(9).normal(size=out.shape)
        return (out, *pull(jnp.asarray(g, out.dtype)))

    return [np.asarray(x, np.float64) for x in both(*inputs)]


def assert_close(got, want, tolerance):
    for name, a, b in zip(NAMES, got, want, strict=True):
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)
        assert error < tolerance, f"{name}: error {error:.1e} of the largest entry"


PACKED = ((70, 60, 40), (7, 1, 1, 190), ())
CASES = {
    "packed": ((PACKED, 200, 4, 2, 4), {}),
    "permuted_window": ((PACKED, 200, 3, 1, 5, "permuted"), {"window": 50}),
    "later_queries": (((300,), (100, 30)), 300, 2, 2, 70, "given", 150),
}


@pytest.mark.parametrize("name", ["packed", "permuted_window"])
def test_interpret_matches_float64_definition(name):
    shape, static = CASES[name]
    args = arguments(*shape)
    with jax.enable_x64(True):
        want = run(segment_attention_reference, args, jnp.float64, scale=0.3, **static)
    got = run(
        segment_attention_interpret, args, jnp.float32, scale=0.3, **static,
        block_q=128, block_k=128,
    )  # fmt: skip
    assert_close(got, want, 3e-6)
    padding = args["q_segment_ids"] == 0
    assert padding.any() and all((x[padding] == 0).all() for x in got)


def test_unequal_blocks_fewer_queries_than_keys():
    args = arguments(*CASES["later_queries"])
    with jax.enable_x64(True):
        want = run(segment_attention_reference, args, jnp.float64, scale=0.3)
    got = run(segment_attention_interpret, args, jnp.float32, scale=0.3, block_q=128, block_k=256)
    assert_close(got, want, 3e-6)


def test_public_entry_in_row_order_without_ids():
    args = arguments(((150,),), 150, 2, 1, 4)
    args = {name: args[name] for name in "qkv"}
    with jax.enable_x64(True):
        want = run(segment_attention_reference, args, jnp.float64, scale=0.3)
    for dtype, tolerance in ((jnp.float32, 3e-6), (jnp.bfloat16, 3e-2)):
        got = run(segment_attention, args, dtype, scale=0.3, implementation="interpret")
        assert_close(got, want, tolerance)


@pytest.mark.parametrize("with_ids", [True, False])
def test_blocks_that_need_no_mask(with_ids):
    """Three blocks in row order: the last sees all of the first, whose window reaches that far."""
    args = arguments(((300,),), 300, 1, 1, 4)
    if not with_ids:
        args = {name: args[name] for name in "qkv"}
    with jax.enable_x64(True):
        want = run(segment_attention_reference, args, jnp.float64, scale=0.3, window=290)
    got = run(
        segment_attention_interpret, args, jnp.float32, scale=0.3, window=290,
        block_q=128, block_k=128,
    )  # fmt: skip
    assert_close(got, want, 3e-6)


@pytest.mark.parametrize("with_ids, window", [(True, None), (False, 40)])
def test_splash_matches_float64_definition(with_ids, window):
    args = arguments(((70, 60), (9, 141)), 150, 2, 1, 4)
    if not with_ids:
        args = {name: args[name] for name in "qkv"}
    with jax.enable_x64(True):
        want = run(segment_attention_reference, args, jnp.float64, scale=0.3, window=window)
    splash = functools.partial(segment_attention_splash, interpret=True, block=128)
    got = run(splash, args, jnp.float32, scale=0.3, window=window)
    assert_close(got, want, 3e-6)
    if with_ids:
        padding = args["q_segment_ids"] == 0
        assert padding.any() and all((x[padding] == 0).all() for x in got)


def test_rows_can_lie_on_different_devices():
    """The kernels inside shard_map, a row of the batch on each of two devices."""
    args = arguments(((70, 50), (128,)), 128, 1, 1, 4)
    want = run(segment_attention_interpret, args, jnp.float32, scale=0.3)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))

    def split(q, k, v, q_segment_ids, kv_segment_ids, scale):
        def local(q, k, v, ids):
            return segment_attention_interpret(
                q, k, v, q_segment_ids=ids, kv_segment_ids=ids, scale=scale
            )

        rows = jax.P("data")
        mapped = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
        return mapped(q, k, v, q_segment_ids)

    assert_close(run(split, args, jnp.float32, scale=0.3), want, 1e-6)


def test_positions_alone_do_not_see_the_padding_inside():
    """Positions without segments, a length that is no whole block."""
    args = arguments(((150,),), 150, 2, 1, 4, "permuted")
    for name in ("q_segment_ids", "kv_segment_ids"):
        del args[name]
    with jax.enable_x64(True):
        want = run(segment_attention_reference, args, jnp.float64, scale=0.3)
    assert_close(run(segment_attention_interpret, args, jnp.float32, scale=0.3), want, 3e-6)


def training_step(function, with_ids=True, with_positions=True, **static):
    def step(q, k, v, ids, positions):
        given = dict(q_segment_ids=ids, kv_segment_ids=ids) if with_ids else {}
        if with_positions:
            given |= dict(q_positions=positions, kv_positions=positions)
        out, pull = jax.vjp(lambda *x: function(*x, **given, scale=0.1, **static), q, k, v)
        return out, pull(out)

    return step


def abstract(batch, length, heads, kv_heads, width, dtype):
    q = jax.ShapeDtypeStruct((batch, length, heads, width), dtype)
    kv = jax.ShapeDtypeStruct((batch, length, kv_heads, width), dtype)
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return q, kv, kv, ids, ids


SHAPES = {
    "llama": (2, 4096, 8, 2, 128, jnp.bfloat16),
    "smol": (2, 2048, 9, 3, 64, jnp.bfloat16),
    "odd": (1, 1000, 4, 4, 50, jnp.float32),
}


@pytest.mark.parametrize(
    "name, with_ids, with_positions",
    [("llama", True, True), ("smol", True, False), ("odd", False, False), ("odd", False, True)],
)
def test_lowers_for_tpu_without_an_array_of_queries_times_keys(v5p, name, with_ids, with_positions):
    step = training_step(segment_attention_pallas_tpu, with_ids, with_positions, window=300)
    args = abstract(*SHAPES[name])
    with jax.sharding.use_abstract_mesh(v5p):
        text = jax.jit(step).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3  # Forward, by queries, by keys.
    length = SHAPES[name][1]
    assert f"{length}x{length}" not in text


def test_what_it_cannot_do_is_said():
    x = jnp.zeros((1, 8, 1, 4), jnp.float16)
    with pytest.raises(ImplementationUnavailableError, match="not float16"):
        segment_attention(x, x, x, scale=1.0, implementation="pallas_tpu")
    x = jnp.zeros((2, 128, 1, 4), jnp.float32)
    with pytest.raises(ValueError, match="divisible by"):
        jax.jit(lambda x: segment_attention_pallas_tpu(x, x, x, scale=1.0, block_q=40)).trace(
            x
        ).lower(lowering_platforms=("tpu",))
    q, k, v, ids, _ = abstract(40, 64 * 1024, 1, 1, 64, jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="larger block_q"):
        jax.eval_shape(
            lambda q, k, v, ids: segment_attention_pallas_tpu(
                q, k, v, q_segment_ids=ids, kv_segment_ids=ids, scale=1.0
            ),
            q, k, v, ids,
        )  # fmt: skip


@pytest.mark.tpu_aot
@pytest.mark.parametrize("name", SHAPES)
def test_compiles_ahead_of_time_for_v5p(compile_for_v5p, name):
    step = training_step(segment_attention_pallas_tpu, with_positions=name == "llama")
    text = compile_for_v5p(step, *abstract(*SHAPES[name]))
    assert text.count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.tpu_aot
@pytest.mark.parametrize("name", SHAPES)
def test_splash_compiles_ahead_of_time_for_v5p(compile_for_v5p, name):
    step = training_step(
        segment_attention_splash, with_ids=name != "odd", with_positions=False, window=300
    )
    text = compile_for_v5p(step, *abstract(*SHAPES[name]))
    assert text.count('custom_call_target="tpu_custom_call"') == 3
