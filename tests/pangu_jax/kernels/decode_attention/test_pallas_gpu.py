"""The Mosaic GPU kernel of decode attention.

Without a GPU: numbers in interpret mode against the float64 definition, lowering for CUDA, and,
where the CUDA plugin and ptxas are installed, real compilation for an H100. With a Hopper GPU,
`pytest -m gpu` (and JAX_PLATFORMS=cuda) compares the kernel with the definition on the device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_arguments import arguments, run

pytest.importorskip("jax.experimental.pallas.mosaic_gpu", reason="this JAX has no Mosaic GPU")

from pangu_jax.kernels.decode_attention import decode_attention
from pangu_jax.kernels.decode_attention.pallas_gpu import (
    _spans,
    decode_attention_pallas_gpu,
    shares,
)
from pangu_jax.kernels.decode_attention.reference import decode_attention_reference
from pangu_jax.kernels.implementation import ImplementationUnavailableError

CASES = {
    # Lengths of nothing, one key, one tile, all slots; two shares, one of them empty for some rows.
    "one_query": ((0, 1, 64, 300), 1, 6, 2, 32, 64, 5),
    # The window begins inside a tile; pages of two tiles.
    "window": ((1, 65, 384), 1, 3, 1, 32, 128, 3, 100),
    "chunk": ((2, 130), 5, 2, 1, 32, 64, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_interpret_matches_float64_definition(name):
    args = arguments(*CASES[name])
    window = CASES[name][7] if len(CASES[name]) > 7 else None
    with jax.enable_x64(True):
        want = run(decode_attention_reference, args, jnp.float64, window=window)
    kernel = functools.partial(decode_attention_pallas_gpu, interpret=True, shares_of_row=2)
    got = run(kernel, args, jnp.float32, window=window)
    np.testing.assert_allclose(got, want, atol=3e-6)


@pytest.mark.parametrize("window", [None, 1, 70, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_hold_every_tile_that_is_seen_once(window, count):
    lengths, queries = np.array([0, 1, 63, 64, 65, 700, 1024], np.int32), 3
    spans = np.asarray(_spans(jnp.asarray(lengths), queries, window, count))
    for length, row in zip(lengths, spans, strict=True):
        tiles = [tile for first, last in row for tile in range(first, last)]
        oldest = 0 if window is None else max(0, length - queries - window + 1)
        assert tiles == list(range(oldest // 64, -(-length // 64)))


def test_shares_fill_the_device_and_stay_large():
    assert shares(1, 8, 1024) == 33
    assert shares(64, 8, 1024) == 1
    assert shares(1, 3, 8) == 2
    assert shares(1, 1, 1) == 1


SHAPES = {
    # B, C, N, K, H, page, M
    "smol": (16, 1, 9, 3, 64, 64, 32),
    "large": (8, 1, 96, 8, 128, 128, 64),
    "chunk_of_narrow_heads": (2, 16, 4, 1, 32, 256, 4),
}


def abstract(name, dtype=jnp.bfloat16, sharding=None):
    batch, queries, heads, kv_heads, width, page, pages = SHAPES[name]
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    pool = shape((batch * pages, kv_heads, page, width), dtype)
    q = shape((batch, queries, heads, width), dtype)
    return q, pool, pool, shape((batch, pages), jnp.int32), shape((batch,), jnp.int32)


FORMS = [("smol", None), ("large", 1000), ("chunk_of_narrow_heads", 100)]


@pytest.mark.parametrize("name, window", FORMS)
def test_lowers_for_cuda_without_gathering_pages(name, window):
    call = functools.partial(decode_attention_pallas_gpu, scale=0.1, window=window)
    text = jax.jit(call).trace(*abstract(name)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == 1
    assert "stablehlo.gather" not in text


@pytest.mark.parametrize("name, window", FORMS)
def test_compiles_for_h100_without_a_gpu(h100, name, window):
    call = functools.partial(decode_attention_pallas_gpu, scale=0.1, window=window)
    text = jax.jit(call).lower(*abstract(name, sharding=h100)).compile().as_text()
    assert text.count('custom_call_target="mosaic_gpu') == 1


@pytest.mark.parametrize(
    "queries, width, page, dtype, page_type, message",
    [
        (1, 64, 64, jnp.float32, jnp.float32, "float32 inputs"),
        (1, 64, 64, jnp.bfloat16, jnp.float16, "pages float16"),
        (1, 48, 64, jnp.bfloat16, jnp.bfloat16, "head width 48"),
        (1, 64, 16, jnp.bfloat16, jnp.bfloat16, "multiples of 64"),
        (40, 64, 64, jnp.bfloat16, jnp.bfloat16, "40 queries of 2 heads"),
    ],
)
def test_what_it_cannot_do_is_said(queries, width, page, dtype, page_type, message):
    pool = jnp.zeros((4, 1, page, width), page_type)
    with pytest.raises(ImplementationUnavailableError, match=message):
        decode_attention(
            jnp.zeros((2, queries, 2, width), dtype), pool, pool, jnp.zeros((2, 3), jnp.int32),
            jnp.zeros(2, jnp.int32), scale=1.0, implementation="pallas_gpu",
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("shares_of_row", [1, 3, None])
@pytest.mark.parametrize(
    "lengths, shape, window",
    [
        ((0, 1, 64, 65, 2048), (1, 9, 3, 64, 64, 32), None),
        ((1, 700, 1024), (3, 32, 8, 128, 128, 8), 200),
        ((20, 512), (16, 4, 1, 32, 256, 2), None),
    ],
)
def test_gpu_matches_float32_definition(hopper, lengths, shape, window, shares_of_row):
    args = arguments(lengths, *shape, window)
    for name in ("q", "k_pages", "v_pages"):
        args[name] = np.asarray(jnp.asarray(args[name], jnp.bfloat16), np.float32)
    kernel = functools.partial(decode_attention_pallas_gpu, shares_of_row=shares_of_row)
    got = run(kernel, args, jnp.bfloat16, window=window)
    with jax.default_matmul_precision("highest"):
        want = run(decode_attention_reference, args, jnp.float32, window=window)
    np.testing.assert_allclose(got, want, atol=0.02)
