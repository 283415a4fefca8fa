"""Plans of rows: every token once, in order, in rows that are full or as full as they can be."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.data.text.packing import ConcatRows, WholeRows

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(np.array)


def orders(count, seed=0):
    """epoch -> permutation, with one document left out in odd epochs if there are two or more."""

    def order(epoch):
        permuted = np.random.default_rng([seed, epoch]).permutation(count)
        return permuted[1:] if epoch % 2 and count > 1 else permuted

    return order


def cells(pieces):
    """Every (document, token) of a row."""
    spans = zip(*(column.tolist() for column in pieces), strict=True)
    return [(d, t) for d, start, stop in spans for t in range(start, stop)]


def stream(sizes, order, tokens):
    """The endless stream as a plain loop makes it."""
    result, epoch = [], 0
    while len(result) < tokens:
        for document in order(epoch).tolist():
            result += [(document, t) for t in range(sizes[document])]
        epoch += 1
    return result[:tokens]


@given(SIZES, st.integers(1, 50), st.integers(0, 100))
def test_concatenated_rows_are_the_stream_cut_up(sizes, row_length, start):
    order = orders(len(sizes))
    rows = ConcatRows(sizes, row_length, order, start)
    found = [cells(rows.row(r)) for r in range(12)]
    assert all(len(row) == row_length for row in found)
    assert sum(found, []) == stream(sizes, order, start + 12 * row_length)[start:]
    # In any order of asking, also by a plan that has seen nothing.
    assert cells(ConcatRows(sizes, row_length, order, start).row(7)) == found[7]
    assert cells(rows.row(0)) == found[0]


@given(SIZES, st.integers(1, 50))
def test_whole_rows_hold_every_token_of_an_epoch_once(sizes, row_length):
    order = orders(len(sizes))
    rows = WholeRows(sizes, row_length, order, open_rows=3)
    for epoch in range(2):
        found, number = [], rows._begins[epoch]
        found.append(cells(rows.row(number)))
        while number + 1 < rows._begins[epoch + 1]:
            number += 1
            found.append(cells(rows.row(number)))
        assert all(1 <= len(row) <= row_length for row in found)
        want = [(d, t) for d in order(epoch).tolist() for t in range(sizes[d])]
        assert sorted(sum(found, [])) == sorted(want)
    # Documents that fit are not cut.
    pieces = [rows.row(r) for r in range(rows._begins[1])]
    for row in pieces:
        whole = sizes[row.document] <= row_length
        assert np.all((row.stop - row.start)[whole] == sizes[row.document][whole])


def test_whole_rows_waste_little():
    sizes = np.random.default_rng(0).integers(1, 100, 2000)
    rows = WholeRows(sizes, 256, orders(len(sizes)))
    rows.row(0)
    assert sizes.sum() / (256 * rows._begins[1]) > 0.97
