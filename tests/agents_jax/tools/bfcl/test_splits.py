"""Splits that share no function and no question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_jax.tools.bfcl import AST_CATEGORIES, split_by_category, split_by_function
from tests.agents_jax.tools.bfcl.made import function, item

_rows = st.lists(
    st.tuples(
        st.sets(st.integers(0, 30), min_size=1, max_size=3),
        st.integers(0, 40),
        st.sampled_from(["simple_python", "multiple", "live_simple"]),
    ),
    min_size=1,
    max_size=40,
)


def _items(rows):
    return [
        item(
            [function(f"f{n}") for n in sorted(names)],
            [{f"f{max(names)}": {}}],
            category,
            f"Question {question}?",
            number,
        )
        for number, (names, question, category) in enumerate(rows)
    ]


def _functions(items):
    return {name for i in items for name in i.offered_names}


def _questions(items):
    return {i.messages[-1]["content"] for i in items}


@given(_rows, st.floats(0.05, 0.95), st.integers(0, 5))
def test_nothing_is_shared(rows, fraction, seed):
    items = _items(rows)
    split = split_by_function(items, held_out_fraction=fraction, seed=seed)
    assert not _functions(split.train) & _functions(split.held_out)
    assert not _questions(split.train) & _questions(split.held_out)
    assert sorted(i.id for i in split.train + split.held_out) == sorted(i.id for i in items)
    for category, (train, held) in split.sizes().items():
        assert train + held == sum(i.category == category for i in items)
        assert held <= round(fraction * (train + held))
    assert split == split_by_function(items, held_out_fraction=fraction, seed=seed)


@given(_rows)
def test_called_names_alone(rows):
    split = split_by_function(_items(rows), names="called", held_out_fraction=0.5)
    called = [{n for i in part for n in i.called_names} for part in (split.train, split.held_out)]
    assert not called[0] & called[1]
    assert not _questions(split.train) & _questions(split.held_out)


@given(_rows)
def test_categories_held_out_whole(rows):
    items = _items(rows)
    split = split_by_category(items, train=["live_simple"], held_out=["simple_python"])
    assert [i for i in items if i.category == "simple_python"] == list(split.held_out)
    assert not _functions(split.train) & _functions(split.held_out)
    assert not _questions(split.train) & _questions(split.held_out)
    kept = len(split.train) + len(split.held_out)
    assert kept + sum(split.dropped.values()) == len(items)


def test_seeds_differ():
    items = _items([({n}, n, "simple_python") for n in range(100)])
    splits = [split_by_function(items, seed=seed) for seed in range(2)]
    assert [len(s.held_out) for s in splits] == [20, 20]
    assert splits[0].held_out != splits[1].held_out


def test_long_items_are_dropped_first():
    # The long one joins all others; without it they part.
    rows = [({n}, n, "simple_python") for n in range(10)] + [({0, 1, 2}, 99, "simple_python")]
    items = _items(rows)
    split = split_by_function(
        items, held_out_fraction=0.5, num_tokens=lambda i: 100 * len(i.functions), max_tokens=200
    )
    assert split.dropped == {"more than 200 tokens": 1} and len(split.held_out) == 5


def test_bad_arguments():
    with pytest.raises(ValueError, match="held_out_fraction=1.5"):
        split_by_function([], held_out_fraction=1.5)
    with pytest.raises(ValueError, match="allowed: offered, called"):
        split_by_function([], names="all")
    with pytest.raises(ValueError, match="together"):
        split_by_function([], max_tokens=3)
    with pytest.raises(ValueError, match=r"\['multiple'\] are in both"):
        split_by_category([], train=["multiple"], held_out=["multiple"])


def test_real_items_part_into_full_shares(real_items):
    """Groups are small enough for every category to reach its share, but for live_multiple."""
    items = [i for i in real_items if i.category in AST_CATEGORIES]
    split = split_by_function(items)
    assert not _functions(split.train) & _functions(split.held_out)
    sizes = split.sizes()
    assert sizes["simple_python"] == (320, 80)
    assert sizes["multiple"] == (160, 40)
    assert sizes["live_simple"] == (206, 52)
    assert sizes["live_multiple"] == (922, 131)
