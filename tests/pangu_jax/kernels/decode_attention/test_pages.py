"""Pages of keys: writing tokens, and rows in pages against contiguous rows."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pangu_jax.kernels.decode_attention import decode_attention, gather_pages, write_tokens
from pangu_jax.kernels.segment_attention import segment_attention

ROWS, PAGES, PAGE, KV_HEADS, WIDTH = 3, 4, 4, 2, 8
SLOTS = PAGES * PAGE


def empty_pool(rng, dtype=np.float32):
    """(pool full of NaN, block tables): nothing is there until it is written."""
    pool = jnp.full((ROWS * PAGES + 2, KV_HEADS, PAGE, WIDTH), np.nan, dtype)
    tables = rng.permutation(len(pool))[: ROWS * PAGES].reshape(ROWS, PAGES)
    return pool, jnp.asarray(tables, jnp.int32)


write = jax.jit(write_tokens, donate_argnums=0)


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6),
    st.integers(0, 2**31 - 1),
)
def test_written_in_chunks_equals_contiguous(chunks, seed):
    """Rows grow by 0 to 3 tokens per call, like requests of a batch; a NumPy array per row is the
    contiguous cache."""
    rng = np.random.default_rng(seed)
    k_pages, tables = empty_pool(rng)
    v_pages, _ = empty_pool(rng)
    rows = np.zeros((2, ROWS, SLOTS, KV_HEADS, WIDTH), np.float32)
    lengths = np.zeros(ROWS, np.int32)
    for counts in chunks:
        counts = np.minimum(counts, SLOTS - lengths)
        new = rng.normal(size=(2, ROWS, 3, KV_HEADS, WIDTH)).astype(np.float32)
        positions = (lengths[:, None] + np.arange(3)).astype(np.int32)
        valid = np.arange(3) < counts[:, None]
        k_pages = write(k_pages, new[0], tables, positions, valid)
        v_pages = write(v_pages, new[1], tables, positions, valid)
        for b, count in enumerate(counts):
            rows[:, b, lengths[b] : lengths[b] + count] = new[:, b, :count]
        lengths = (lengths + counts).astype(np.int32)
    for pool, want in zip((k_pages, v_pages), rows, strict=True):
        got = np.asarray(gather_pages(pool, tables))
        for b, length in enumerate(lengths):
            np.testing.assert_array_equal(got[b, :, :length], want[b, :length].swapaxes(0, 1))
            assert np.isnan(got[b, :, length:]).all()
    q = rng.normal(size=(ROWS, 1, 4, WIDTH)).astype(np.float32)
    got = decode_attention(q, k_pages, v_pages, tables, jnp.asarray(lengths), scale=0.3)
    order = np.broadcast_to(np.arange(SLOTS, dtype=np.int32), (ROWS, SLOTS))
    want = segment_attention(
        q, *rows, scale=0.3,
        q_segment_ids=(lengths > 0)[:, None].astype(np.int32),
        kv_segment_ids=(order < lengths[:, None]).astype(np.int32),
        q_positions=lengths[:, None] - 1, kv_positions=order,
    )  # fmt: skip
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_only_valid_tokens_inside_the_table_are_written():
    rng = np.random.default_rng(0)
    pool, tables = empty_pool(rng, jnp.bfloat16)
    new = np.ones((ROWS, 2, KV_HEADS, WIDTH), np.float32)
    positions = jnp.asarray([[0, -1], [SLOTS, 5], [SLOTS - 1, 7]], jnp.int32)
    valid = jnp.asarray([[True, True], [True, True], [True, False]])
    got = write_tokens(pool, new, tables, positions, valid)
    assert got.dtype == jnp.bfloat16
    written = ~np.isnan(np.asarray(got, np.float32)).any((1, 3))
    want = np.zeros_like(written)
    for b, p in ((0, 0), (1, 5), (2, SLOTS - 1)):
        want[tables[b, p // PAGE], p % PAGE] = True
    np.testing.assert_array_equal(written, want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=str)
def test_a_donated_pool_is_changed_in_place(dtype):
    """A step whose temporaries would show a copy of the pool."""
    pool = jax.ShapeDtypeStruct((1000, KV_HEADS, PAGE, WIDTH), dtype)

    def step(pool, new, tables, positions):
        pool = write_tokens(pool, new, tables, positions)
        return pool, gather_pages(pool, tables).sum()

    shapes = (ROWS, 1, KV_HEADS, WIDTH), (ROWS, PAGES), (ROWS, 1)
    new = jax.ShapeDtypeStruct(shapes[0], jnp.float32)
    ints = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes[1:])
    compiled = jax.jit(step, donate_argnums=0).lower(pool, new, *ints).compile()
    memory = compiled.memory_analysis()
    size = pool.size * pool.dtype.itemsize
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"new": np.zeros((2, 3, 2, 4), "f4")}, "new has shape"),
        ({"block_tables": np.zeros((3, 4), "i4")}, r"\[2, pages\]"),
        ({"positions": np.zeros((2, 1), "i8")}, "positions is int64"),
        ({"valid": np.zeros((2, 1), "i4")}, "valid is int32"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    arguments = {
        "pages": jnp.zeros((5, 2, 8, 4)),
        "new": np.zeros((2, 1, 2, 4), "f4"),
        "block_tables": np.zeros((2, 3), "i4"),
        "positions": np.zeros((2, 1), "i4"),
    }
    with pytest.raises(ValueError, match=message):
        write_tokens(**(arguments | change))
