"""The paged forward pass against the NumPy float64 decoder, whatever lies in the other pages."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import VARIANTS, VOCAB, log_probabilities, log_softmax, tiny_model

from pangu_jax.inference.forward import Chunk, create_pages, forward, logits_of
from pangu_jax.inference.weights import prepare_weights

PAGE, TABLE, POOL = 4, 6, 24


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, weights, pages, chunk):
    hidden, pages, _ = forward(config, weights, pages, chunk)
    return logits_of(weights, hidden), pages


def read(model, rows, chunks, tables, pages=None, width=None):
    """Float32 logits of every token of each row, read in pieces of the given sizes.

    chunks: per turn, tokens taken of each row; the rest of `width` is padding.
    """
    weights = prepare_weights(model.config, model.params)
    pages = create_pages(model.config, POOL, PAGE) if pages is None else pages
    out = [[] for _ in rows]
    start = np.zeros(len(rows), np.int32)
    for counts in chunks:
        size = width or max(counts)
        tokens = np.zeros((len(rows), size), np.int32)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            tokens[index, :count] = row[start[index] : start[index] + count]
        chunk = Chunk(tokens, start.copy(), np.asarray(counts, np.int32), tables)
        logits, pages = _logits(model.config, weights, pages, chunk)
        for index, count in enumerate(counts):
            out[index].append(np.asarray(logits[index, :count]))
        start += np.asarray(counts, np.int32)
    return [np.concatenate(parts) for parts in out], pages


def rows_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, n).astype(np.int32) for n in lengths]


def tables_of(rows, seed=0):
    pages = np.random.default_rng(seed).permutation(np.arange(1, POOL))[: rows * TABLE]
    return pages.reshape(rows, TABLE).astype(np.int32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_and_single_steps_equal_the_whole_sequence(variant):
    model = tiny_model(variant)
    rows = rows_of((13, 9, 5))
    # Prompts of unequal lengths with padding, an idle row, then one token at a time.
    chunks = [(6, 3, 0), (4, 5, 4), *[(1, 0, 0)] * 2, (1, 1, 1)]
    logits, _ = read(model, rows, chunks, tables_of(3), width=6)
    for row, found in zip(rows, logits, strict=True):
        expected = log_probabilities(row, model)
        np.testing.assert_allclose(log_softmax(found.astype(np.float64)), expected, atol=2e-5)


def test_pages_in_another_order_change_nothing():
    model = tiny_model()
    rows = rows_of((17, 8))
    chunks = [(8, 8), (8, 0), (1, 0)]
    a, _ = read(model, rows, chunks, np.arange(1, 2 * TABLE + 1, dtype=np.int32).reshape(2, -1))
    for seed in range(3):
        b, _ = read(model, rows, chunks, tables_of(2, seed))
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_what_free_pages_hold_does_not_matter(garbage):
    """A request whose keys overflowed must not spoil those that get its pages."""
    model = tiny_model()
    rows = rows_of((11, 6))
    chunks = [(8, 6), (3, 0)]  # 8 wide: the second row is padded, the second turn too
    clean, _ = read(model, rows, chunks, tables_of(2), width=8)
    pages = jax.tree.map(
        lambda x: jnp.full_like(x, garbage), create_pages(model.config, POOL, PAGE)
    )
    dirty, _ = read(model, rows, chunks, tables_of(2), pages, width=8)
    for x, y in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(x, y)


def test_only_the_valid_tokens_are_written():
    model = tiny_model()
    rows = rows_of((7, 3, 5))
    tables = tables_of(3)
    marked = jax.tree.map(lambda x: jnp.full_like(x, 7.0), create_pages(model.config, POOL, PAGE))
    _, pages = read(model, rows, [(7, 3, 0)], tables, marked, width=8)
    for keys, values in pages:
        for array in (np.asarray(keys), np.asarray(values)):
            written = (array != 7).any(axis=(1, 3))  # (P, page)
            expected = np.zeros_like(written)
            for row, count in ((0, 7), (1, 3)):
                for position in range(count):
                    expected[tables[row, position // PAGE], position % PAGE] = True
            np.testing.assert_array_equal(written, expected)


def test_a_batch_with_idle_rows_equals_each_row_alone():
    model = tiny_model("dssn_qk_norm")
    rows = rows_of((9, 1, 4))
    together, _ = read(model, rows, [(4, 1, 4), (4, 0, 0), (1, 0, 0)], tables_of(3), width=4)
    for index, row in enumerate(rows):
        counts = [(min(4, len(row) - s),) for s in range(0, len(row), 4)]
        alone, _ = read(model, [row], counts, tables_of(3)[index : index + 1], width=4)
        np.testing.assert_allclose(together[index], alone[0], atol=2e-5)
