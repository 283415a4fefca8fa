"""Ranking against a float64 oracle, its tie rule, and what must not change the result."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_jax.evaluation.ranking import NOT_RANKED, rank_targets_and_topk


def oracle(users, table, targets, history, k, allowed=None):
    """Ranks and lists by sorting whole rows in float64."""
    scores = users.astype(np.float64) @ table.astype(np.float64).T
    ranks, lists = [], []
    for row, target, past in zip(scores, targets, history, strict=True):
        candidate = np.arange(len(table)) > 0
        if allowed is not None:
            candidate &= allowed
        candidate[past[past != target]] = False
        others = candidate.copy()
        others[target] = False
        ranks.append(1 + np.sum(row[others] >= row[target]) if target else 0)
        ids = np.flatnonzero(candidate)
        best = ids[np.lexsort((ids, -row[ids]))][:k]
        lists.append(np.pad(best, (0, k - len(best))))
    return np.array(ranks), np.array(lists)


def problem(seed, items, batch, dim, width, integer=True):
    rng = np.random.default_rng(seed)
    if integer:  # Exact in float32, with many ties.
        users, table = rng.integers(-2, 3, (batch, dim)), rng.integers(-2, 3, (items + 1, dim))
    else:
        users, table = rng.standard_normal((batch, dim)), rng.standard_normal((items + 1, dim))
    table[0] = 50  # The padding row must never be ranked, whatever it holds.
    return (
        users.astype(np.float32),
        table.astype(np.float32),
        rng.integers(0, items + 1, batch).astype(np.int32),
        rng.integers(0, items + 1, (batch, width)).astype(np.int32),
    )


CASES = [  # items, batch, dim, history, k, block
    (50, 7, 3, 5, 10, None),
    (1000, 16, 4, 30, 10, 64),
    (1000, 16, 4, 30, 10, 70),
    (3000, 9, 8, 0, 50, 512),
    (33, 3, 2, 40, 33, 32),  # last block holds two rows; some users keep no candidate
    (300, 5, 3, 100, 20, 32),
    (700, 4, 3, 7, 3, None),
    (2000, 4, 3, 7, 3, None),  # one block
    (100, 1, 1, 1, 1, 32),
    (500, 6, 2, 1500, 5, 96),  # more history entries than one chunk
]


@pytest.mark.parametrize("items,batch,dim,width,k,block", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_oracle_with_exact_ties(items, batch, dim, width, k, block, masked):
    args = problem(items + batch, items, batch, dim, width)
    allowed = np.random.default_rng(1).random(items + 1) < 0.7 if masked else None
    got = rank_targets_and_topk(*args, k=k, block_items=block, allowed_items=allowed)
    ranks, lists = oracle(*args, k, allowed)
    np.testing.assert_array_equal(got.ranks, ranks)
    np.testing.assert_array_equal(got.topk_items, lists)
    scores = np.take_along_axis(args[0] @ args[1].T, lists, axis=1)
    np.testing.assert_array_equal(got.topk_scores, np.where(lists > 0, scores, -np.inf))


@pytest.mark.parametrize("block", [None, 128])
def test_equals_oracle_on_real_numbers(block):
    args = problem(5, 1500, 40, 64, 20, integer=False)
    got = rank_targets_and_topk(*args, k=20, block_items=block)
    ranks, lists = oracle(*args, 20)
    np.testing.assert_array_equal(got.ranks, ranks)
    np.testing.assert_array_equal(got.topk_items, lists)


@pytest.mark.parametrize("dim", [1, 7, 64, 300])
@pytest.mark.parametrize("block", [None, 64, 1000])
def test_collapsed_model_gets_the_worst_rank(dim, block):
    """All item vectors equal: rounding of the products must not rank the target first."""
    rng = np.random.default_rng(dim)
    items, batch = 1203, 8
    table = np.tile(rng.standard_normal(dim).astype(np.float32), (items + 1, 1))
    users = rng.standard_normal((batch, dim)).astype(np.float32)
    targets = rng.integers(1, items + 1, batch).astype(np.int32)
    history = np.where(targets == 1, 2, 1)[:, None].astype(np.int32)
    got = rank_targets_and_topk(users, table, targets, history, k=0, block_items=block)
    np.testing.assert_array_equal(got.ranks, items - 1)


def test_nan_scores_never_help():
    users, table, targets, history = problem(0, 200, 4, 3, 2)
    targets = np.maximum(targets, 1)
    got = rank_targets_and_topk(users * np.nan, table, targets, history, k=5, block_items=64)
    others = [len(np.setdiff1d(np.arange(1, 201), np.append(h, t))) for h, t in
              zip(history, targets, strict=True)]  # fmt: skip
    np.testing.assert_array_equal(got.ranks, 1 + np.array(others))
    np.testing.assert_array_equal(got.topk_items, 0)


def test_target_in_history():
    """Default: still a candidate. filter_target: not ranked and not recommended."""
    table = np.array([[9], [4], [3], [2], [1]], np.float32)
    users = np.ones((2, 1), np.float32)
    targets, history = np.array([2, 2], np.int32), np.array([[1, 2], [1, 3]], np.int32)
    got = rank_targets_and_topk(users, table, targets, history, k=3)
    np.testing.assert_array_equal(got.ranks, [1, 1])
    np.testing.assert_array_equal(got.topk_items, [[2, 3, 4], [2, 4, 0]])
    got = rank_targets_and_topk(users, table, targets, history, k=3, filter_target=True)
    np.testing.assert_array_equal(got.ranks, [NOT_RANKED, 1])
    np.testing.assert_array_equal(got.topk_items, [[3, 4, 0], [2, 4, 0]])


def test_padding_rows_behind_the_last_item_are_not_ranked():
    users, table, targets, history = problem(3, 100, 6, 3, 4)
    want = rank_targets_and_topk(users, table, targets, history, k=9)
    table = np.concatenate([table, np.full((28, 3), 60, np.float32)])
    for block in (None, 32):
        got = rank_targets_and_topk(
            users, table, targets, history, k=9, num_items=100, block_items=block
        )
        chex.assert_trees_all_equal(got, want)


@given(st.integers(0, 10**6), st.sampled_from([32, 90, 230]), st.sampled_from([0, 7]))
def test_block_size_changes_nothing(seed, block, k):
    args = problem(seed, 243, 6, 3, 6)  # One set of shapes: every new one is compiled.
    one = rank_targets_and_topk(*args, k=k, block_items=500)
    many = rank_targets_and_topk(*args, k=k, block_items=block)
    chex.assert_trees_all_equal(one, many)


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_renaming_items_changes_no_rank(seed):
    users, table, targets, history = problem(seed, 150, 9, 3, 5)
    rng = np.random.default_rng(seed)
    new = np.concatenate([[0], 1 + rng.permutation(150)]).astype(np.int32)  # old id -> new id
    moved = np.empty_like(table)
    moved[new] = table
    a = rank_targets_and_topk(users, table, targets, history, k=10, block_items=64)
    b = rank_targets_and_topk(users, moved, new[targets], new[history], k=10, block_items=64)
    np.testing.assert_array_equal(a.ranks, b.ranks)
    np.testing.assert_array_equal(a.topk_scores, b.topk_scores)
    order = rng.permutation(9)
    c = rank_targets_and_topk(
        users[order], table, targets[order], history[order], k=10, block_items=64
    )
    chex.assert_trees_all_equal(c, jax.tree.map(lambda x: x[order], a))


@given(st.integers(0, 10**6), st.floats(0.5, 20))
@settings(max_examples=10)
def test_raising_the_target_never_worsens_its_rank(seed, lift):
    users, table, targets, history = problem(seed, 120, 5, 4, 3, integer=False)
    users, targets = users[:1], np.maximum(targets[:1], 1)
    before = rank_targets_and_topk(users, table, targets, history[:1], k=0)
    table[targets[0]] += np.float32(lift) * users[0]
    after = rank_targets_and_topk(users, table, targets, history[:1], k=0)
    assert int(after.ranks[0]) <= int(before.ranks[0])


def test_longer_history_never_worsens_the_rank_and_zeros_do_nothing():
    users, table, targets, history = problem(8, 400, 10, 3, 12)
    short = rank_targets_and_topk(users, table, targets, history[:, :6], k=4, block_items=96)
    long = rank_targets_and_topk(users, table, targets, history, k=4, block_items=96)
    assert (np.asarray(long.ranks) <= np.asarray(short.ranks)).all()
    padded = np.pad(history, ((0, 0), (3, 9)))
    again = rank_targets_and_topk(users, table, targets, padded, k=4, block_items=96)
    chex.assert_trees_all_equal(again, long)


def test_rank_and_list_agree():
    """Without ties the target stands in the list at its rank, or not at all."""
    args = problem(4, 900, 50, 16, 5, integer=False)
    got = rank_targets_and_topk(*args, k=100, block_items=128)
    for rank, target, items in zip(got.ranks, args[2], np.asarray(got.topk_items), strict=True):
        place = np.flatnonzero(items == target) + 1
        if target == 0:
            assert rank == 0
        else:
            np.testing.assert_array_equal(place, [rank] if rank <= 100 else [])


def test_bfloat16_inputs_rank_like_their_float32_values():
    users, table, targets, history = problem(2, 300, 5, 8, 4, integer=False)
    users, table = jnp.asarray(users, jnp.bfloat16), jnp.asarray(table, jnp.bfloat16)
    got = rank_targets_and_topk(users, table, targets, history, k=10, block_items=64)
    want = oracle(
        np.asarray(users, np.float32), np.asarray(table, np.float32), targets, history, 10
    )
    np.testing.assert_array_equal(got.ranks, want[0])
    np.testing.assert_array_equal(got.topk_items, want[1])


def test_memory_does_not_grow_with_items_times_users():
    """XLA's own account of the temporaries: far below one full score matrix."""
    items, batch, dim = 200_000, 256, 16
    shapes = [
        jax.ShapeDtypeStruct(s, d)
        for s, d in [((batch, dim), jnp.float32), ((items + 1, dim), jnp.float32),
                     ((batch,), jnp.int32), ((batch, 100), jnp.int32)]
    ]  # fmt: skip
    run = jax.jit(lambda *a: rank_targets_and_topk(*a, k=10, block_items=4096))
    memory = run.lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.25 * 4 * items * batch


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(k=1000), "k=1000 must lie between 0"),
        (dict(k=-1), "k=-1"),
        (dict(block_items=0), "block_items=0"),
        (dict(num_items=101), "num_items=101"),
        (dict(allowed_items=np.ones(5, bool)), "allowed_items must be bool"),
        (dict(users=np.zeros((6, 4), np.float32)), "4 dimensions but item_table has 3"),
        (dict(targets=np.zeros(5, np.int32)), "targets must have shape"),
        (dict(history=np.zeros(6, np.int32)), "history must have shape"),
        (dict(users=np.zeros(3, np.float32)), "must be matrices"),
    ],
)
def test_errors(change, message):
    users, table, targets, history = problem(3, 100, 6, 3, 4)
    options = dict(users=users, targets=targets, history=history, k=5) | change
    args = [options.pop("users"), table, options.pop("targets"), options.pop("history")]
    with pytest.raises(ValueError, match=message):
        rank_targets_and_topk(*args, **options)
