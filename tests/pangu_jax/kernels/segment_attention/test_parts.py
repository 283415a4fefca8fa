"""Attention to the keys in parts: joined parts against the float64 definition over all keys."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.kernels.implementation import (
    ImplementationUnavailableError,
    UnknownImplementationError,
)
from pangu_jax.kernels.segment_attention import attend_backward, attend_forward
from pangu_jax.kernels.segment_attention.reference import segment_attention_reference, visible
from pangu_jax.kernels.segment_attention.xla import attend_backward_xla, attend_forward_xla

NAMES = ("out", "lse", "dq", "dk", "dv")
STATIC = {"scale": 0.4, "window": 40}


def arguments(length=100, heads=4, kv_heads=2, width=5):
    """Two rows of packed documents with padding, columns shuffled with their ids."""
    rng = np.random.default_rng(1)
    ids = np.zeros((2, length), np.int32)
    positions = np.zeros((2, length), np.int32)
    for row, lengths in enumerate(((length // 2, length // 3), (7, 1, length - 20))):
        start = 0
        for number, size in enumerate(lengths):
            ids[row, start : start + size] = number + 1
            positions[row, start : start + size] = np.arange(size)
            start += size
    columns = rng.permutation(length)
    ids, positions = ids[:, columns], positions[:, columns]
    arrays = {
        name: rng.normal(size=(2, length, n, width))
        for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads), ("d_out", heads))
    }
    return arrays | {
        "q_segment_ids": ids, "kv_segment_ids": ids,
        "q_positions": positions, "kv_positions": positions,
    }  # fmt: skip


@functools.cache
def definition():
    """(out, lse, dq, dk, dv) in float64."""
    args = arguments()
    with jax.enable_x64(True):
        q, k, v, g = (jnp.asarray(args.pop(name)) for name in ("q", "k", "v", "d_out"))
        out, pull = jax.vjp(lambda *x: segment_attention_reference(*x, **args, **STATIC), q, k, v)
        share = q.shape[2] // k.shape[2]
        logits = jnp.einsum("btnh,bsnh->btns", q, jnp.repeat(k, share, axis=2)) * STATIC["scale"]
        mask = visible(*args.values(), STATIC["window"])[:, :, None]
        lse = jax.nn.logsumexp(jnp.where(mask, logits, -jnp.inf), axis=-1)
        return [np.asarray(x) for x in (out, lse, *pull(g))]


def in_parts(forward, backward, dtype, cuts=(30,)):
    """(out, lse, dq, dk, dv) with the keys cut at the given columns."""
    args = arguments()
    q, k, v, d_out = (jnp.asarray(args.pop(name), dtype) for name in ("q", "k", "v", "d_out"))

    def shards(k, v):
        for part in np.split(np.arange(k.shape[1]), cuts):
            of_keys = {name: args[name][:, part] for name in ("kv_segment_ids", "kv_positions")}
            yield k[:, part], v[:, part], args | of_keys | STATIC

    @jax.jit
    def run(q, k, v, d_out):
        parts = [forward(q, k, v, **rest) for k, v, rest in shards(k, v)]
        lse = functools.reduce(jnp.logaddexp, [lse for _, lse in parts])
        finite = jnp.where(jnp.isneginf(lse), 0, lse)
        out = sum(out * jnp.exp(part - finite)[..., None] for out, part in parts)
        results = {"out": out, "lse": lse, "d_out": d_out}
        dq, dk, dv = zip(
            *(backward(q, k, v, **rest, **results) for k, v, rest in shards(k, v)), strict=True
        )
        return out, lse, sum(dq), jnp.concatenate(dk, axis=1), jnp.concatenate(dv, axis=1)

    got = run(q, k, v, d_out)
    wanted_type = jnp.promote_types(dtype, jnp.float32)
    assert all(x.dtype == wanted_type for x in got)
    return [np.asarray(x, np.float64) for x in got]


def assert_close(got, tolerance):
    for name, a, b in zip(NAMES, got, definition(), strict=True):
        unseen = np.isneginf(b)
        np.testing.assert_array_equal(np.isneginf(a), unseen, err_msg=name)
        a, b = np.where(unseen, 0, a), np.where(unseen, 0, b)
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < tolerance, f"{name}: error {error:.1e} of the largest entry"


@pytest.mark.parametrize("blocks", [None, (16, 8)])
def test_joined_parts_equal_the_definition_in_float64(blocks):
    sizes = {} if blocks is None else {"block_q": blocks[0], "block_k": blocks[1]}
    with jax.enable_x64(True):
        got = in_parts(
            functools.partial(attend_forward_xla, **sizes),
            functools.partial(attend_backward_xla, **sizes),
            jnp.float64,
        )
    assert np.isneginf(got[1]).any()  # Padding sees nothing.
    assert_close(got, 1e-12)


@pytest.mark.parametrize(
    "implementation, dtype, tolerance",
    [("auto", jnp.float32, 3e-6), ("auto", jnp.bfloat16, 3e-2), ("interpret", jnp.float32, 3e-6)],
)
def test_public_parts(implementation, dtype, tolerance):
    """'interpret' is the TPU kernel, with lengths that are no whole blocks."""
    got = in_parts(
        functools.partial(attend_forward, implementation=implementation),
        functools.partial(attend_backward, implementation=implementation),
        dtype,
    )
    assert_close(got, tolerance)


def test_parts_of_the_gpu_kernel():
    """In interpret mode on CPU, which also takes float32."""
    pytest.importorskip("jax.experimental.pallas.mosaic_gpu", reason="this JAX has no Mosaic GPU")
    from pangu_jax.kernels.segment_attention import pallas_gpu

    got = in_parts(
        functools.partial(pallas_gpu.attend_forward_pallas_gpu, interpret=True),
        functools.partial(pallas_gpu.attend_backward_pallas_gpu, interpret=True),
        jnp.float32,
    )
    assert_close(got, 3e-6)


def test_a_part_that_nobody_sees():
    """Keys of documents that no query belongs to: zeros, -inf, and no gradient."""
    x = jnp.ones((1, 6, 2, 4))
    ids = jnp.ones((1, 6), jnp.int32)
    given = {
        "q_segment_ids": ids, "kv_segment_ids": ids + 1, "q_positions": ids, "kv_positions": ids,
        "scale": 1.0,
    }  # fmt: skip
    out, lse = attend_forward(x, x, x, **given)
    assert (out == 0).all() and jnp.isneginf(lse).all()
    for known in (lse, jnp.full_like(lse, 3.0)):  # Nothing seen anywhere; something elsewhere.
        for gradient in attend_backward(x, x, x, **given, out=out, lse=known, d_out=x):
            assert (gradient == 0).all()


def test_what_has_no_parts_is_said():
    x = jnp.ones((1, 6, 2, 4))
    for name in ("dense", "cudnn", "splash"):
        with pytest.raises(ImplementationUnavailableError, match=f"'{name}' cannot .* in parts"):
            attend_forward(x, x, x, scale=1.0, implementation=name)
    with pytest.raises(UnknownImplementationError, match="Did you mean 'xla'"):
        attend_forward(x, x, x, scale=1.0, implementation="xl")
    with pytest.raises(ValueError, match="no multiple"):
        attend_forward(x[:, :, :1], x, x, scale=1.0)
    with pytest.raises(ValueError, match=r"lse has shape \(1, 6\)"):
        attend_backward(x, x, x, scale=1.0, out=x, d_out=x, lse=x[:, :, 0, 0])


def both_parts(implementation):
    """A forward and a backward part of bfloat16 inputs, with abstract arguments for it."""

    def step(q, k, v, ids):
        given = {
            "q_segment_ids": ids, "kv_segment_ids": ids, "q_positions": ids, "kv_positions": ids,
            "scale": 0.1, "implementation": implementation,
        }  # fmt: skip
        out, lse = attend_forward(q, k, v, **given)
        return attend_backward(q, k, v, **given, out=out, lse=lse, d_out=q)

    q = jax.ShapeDtypeStruct((1, 1000, 8, 128), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((1, 1000, 2, 128), jnp.bfloat16)
    return jax.jit(step), (q, kv, kv, jax.ShapeDtypeStruct((1, 1000), jnp.int32))


def test_parts_lower_for_devices_that_are_not_here(v5p):
    step, args = both_parts("pallas_tpu")
    with jax.sharding.use_abstract_mesh(v5p):
        text = step.trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3  # Forward, by queries, by keys.
    pytest.importorskip("jax.experimental.pallas.mosaic_gpu", reason="this JAX has no Mosaic GPU")
    step, args = both_parts("pallas_gpu")
    text = step.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 3


@pytest.mark.tpu_aot
def test_parts_compile_ahead_of_time_for_v5p(compile_for_v5p):
    step, args = both_parts("pallas_tpu")
    text = compile_for_v5p(step, *args)
    assert text.count('custom_call_target="tpu_custom_call"') == 3
