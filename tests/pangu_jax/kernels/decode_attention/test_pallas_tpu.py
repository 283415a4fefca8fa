"""The TPU kernel of decode attention: numbers in interpret mode against the float64 definition,
lowering for a TPU, and, where libtpu is installed, compilation for a v5p that is not here."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_arguments import arguments, run

from pangu_jax.kernels.decode_attention import decode_attention
from pangu_jax.kernels.decode_attention.pallas_tpu import (
    decode_attention_interpret,
    decode_attention_pallas_tpu,
)
from pangu_jax.kernels.decode_attention.reference import decode_attention_reference
from pangu_jax.kernels.implementation import ImplementationUnavailableError

CASES = {
    # Lengths of nothing, one key, whole pages and one more, all slots.
    "one_query": ((0, 1, 16, 33, 80), 1, 6, 2, 8, 16, 5),
    "window": ((0, 1, 17, 48, 79), 1, 3, 1, 8, 16, 5, 20),
    "chunk": ((0, 2, 40, 79), 5, 4, 2, 6, 16, 5),
    "chunk_window": ((3, 60, 80), 9, 2, 2, 8, 16, 5, 7),
}


@pytest.mark.parametrize("pages_per_step", [1, 2, None])
@pytest.mark.parametrize("name", CASES)
def test_interpret_matches_float64_definition(name, pages_per_step):
    args = arguments(*CASES[name])
    window = CASES[name][7] if len(CASES[name]) > 7 else None
    with jax.enable_x64(True):
        want = run(decode_attention_reference, args, jnp.float64, window=window)
    got = run(
        decode_attention_interpret, args, jnp.float32, window=window, pages_per_step=pages_per_step
    )
    np.testing.assert_allclose(got, want, atol=3e-6)
    assert (got[0, : max(0, args["q"].shape[1] - args["lengths"][0])] == 0).all()


def test_public_entry():
    args = arguments(*CASES["chunk"])
    with jax.enable_x64(True):
        want = run(decode_attention_reference, args, jnp.float64)
    for dtype, tolerance in ((jnp.float32, 3e-6), (jnp.bfloat16, 3e-2)):
        got = run(decode_attention, args, dtype, implementation="interpret")
        np.testing.assert_allclose(got, want, atol=tolerance)


SHAPES = {
    # B, C, N, K, H, page, M, types of queries and of pages
    "smol": (16, 1, 9, 3, 64, 64, 32, jnp.bfloat16, jnp.bfloat16),
    "smol_chunk": (1, 128, 9, 3, 64, 64, 32, jnp.bfloat16, jnp.bfloat16),
    "large": (64, 1, 96, 8, 128, 128, 256, jnp.bfloat16, jnp.bfloat16),
    "float32_queries": (2, 3, 4, 4, 50, 16, 9, jnp.float32, jnp.bfloat16),
    "float32": (2, 1, 4, 1, 128, 8, 9, jnp.float32, jnp.float32),
}


def abstract(name):
    batch, queries, heads, kv_heads, width, page, pages, q_type, page_type = SHAPES[name]
    pool = jax.ShapeDtypeStruct((batch * pages, kv_heads, page, width), page_type)
    return (
        jax.ShapeDtypeStruct((batch, queries, heads, width), q_type),
        pool,
        pool,
        jax.ShapeDtypeStruct((batch, pages), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("name", SHAPES)
def test_lowers_for_tpu_without_gathering_pages(v5p, name, window):
    call = functools.partial(decode_attention_pallas_tpu, scale=0.1, window=window)
    with jax.sharding.use_abstract_mesh(v5p):
        text = jax.jit(call).trace(*abstract(name)).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 1
    assert "stablehlo.gather" not in text


@pytest.mark.tpu_aot
@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("name", SHAPES)
def test_compiles_ahead_of_time_for_v5p(compile_for_v5p, name, window):
    call = functools.partial(decode_attention_pallas_tpu, scale=0.1, window=window)
    text = compile_for_v5p(call, *abstract(name))
    assert text.count('custom_call_target="tpu_custom_call"') == 1


@pytest.mark.parametrize(
    "shape, dtype, tables, message",
    [
        ((2, 1, 2, 8, 16), jnp.float16, (2, 3), "not float16"),
        ((2, 1, 2, 8, 8), jnp.bfloat16, (2, 3), "multiples of 16"),
        ((2, 1, 2, 8, 16), jnp.float32, (2, 90_000), "larger pages"),
        ((2, 3000, 2, 8, 16), jnp.float32, (2, 3), "3000 queries"),
    ],
)
def test_what_it_cannot_do_is_said(shape, dtype, tables, message):
    batch, queries, heads, width, page = shape
    pool = jnp.zeros((4, heads, page, width), dtype)
    with pytest.raises(ImplementationUnavailableError, match=message):
        decode_attention(
            jnp.zeros((batch, queries, heads, width), dtype), pool, pool,
            jnp.zeros(tables, jnp.int32), jnp.zeros(batch, jnp.int32), scale=1.0,
            implementation="pallas_tpu",
        )  # fmt: skip
