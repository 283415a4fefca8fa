"""Augmentations and walks: what they keep, what they change, how often, and from which lists."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recsys_jax.tracing.advkt import augment
from recsys_jax.tracing.advkt.tables import Ragged, build_tables, ragged

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import advkt_data as data  # noqa: E402

TABLES = data.make_tables()
WIDTH = 12
MASK_QUESTION, MASK_CONCEPT = data.QUESTIONS + 1, data.CONCEPTS + 1
OPERATORS = {
    "mask": jax.jit(lambda key, b: augment.mask_steps(key, b, 0.6, MASK_QUESTION, MASK_CONCEPT)),
    "replace": jax.jit(lambda key, b: augment.replace_questions(key, b, 0.3, TABLES)),
    "crop": jax.jit(lambda key, b: augment.crop(key, b, 0.6)),
    "permute": jax.jit(lambda key, b: augment.permute(key, b, 0.6)),
}


def rows_of(lists: Ragged, row: int) -> list[int]:
    return list(np.asarray(lists.items[lists.offsets[row] : lists.offsets[row + 1]]))


def steps_of(batch, b):
    """(question, concepts, response) of each real step of student b."""
    n = int(batch.mask[b].sum())
    return [
        (int(batch.questions[b, t]), tuple(batch.concepts[b, t].tolist()), int(r))
        for t, r in zip(range(n), np.asarray(batch.responses[b]), strict=False)
    ]


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, WIDTH), min_size=4, max_size=4),
    seed=st.integers(0, 2**31 - 1),
)
def test_invariants(lengths, seed):
    batch = jax.tree.map(np.asarray, data.make_batch(lengths, WIDTH, seed % 7))
    key = jax.random.key(seed)
    got = {n: jax.tree.map(np.asarray, f(key, batch)) for n, f in OPERATORS.items()}
    for view in got.values():
        lengths_now = view.mask.sum(-1)
        assert (view.mask == (np.arange(WIDTH) < lengths_now[:, None])).all()
        assert not view.questions[~view.mask].any() and not view.responses[~view.mask].any()
        assert not view.concepts[~view.mask].any() and (view.questions[view.mask] > 0).all()
    for b, n in enumerate(lengths):
        before = steps_of(batch, b)
        for (q, c, r), (q0, c0, r0) in zip(steps_of(got["mask"], b), before, strict=True):
            assert r == r0
            assert (q, c) in ((q0, c0), (MASK_QUESTION, (MASK_CONCEPT,) * data.SLOTS))
        for (q, c, r), (q0, c0, r0) in zip(steps_of(got["replace"], b), before, strict=True):
            assert r == r0
            if q != q0:
                assert q in rows_of(TABLES.easier if r else TABLES.harder, q0)
                assert c == tuple(TABLES.concepts[q].tolist())
            else:
                assert c == c0
        kept = steps_of(got["crop"], b)
        most = max(int(np.floor(np.float32(n) * np.float32(0.6))), 1)
        assert 1 <= len(kept) <= most
        # The stretch occurs in the original, and a shorter one only at its very end.
        found = [s for s in range(n) if before[s : s + len(kept)] == kept]
        assert found and (len(kept) == most or found[-1] + len(kept) == n)
        shuffled = steps_of(got["permute"], b)
        assert sorted(shuffled) == sorted(before) and shuffled[-1] == before[-1]
        moved = [t for t in range(n) if shuffled[t] != before[t]]
        assert not moved or moved[-1] - moved[0] < 0.6 * n


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_padding_changes_no_augmentation(seed):
    batch = data.make_batch([5, 12, 1], 12)
    for function in OPERATORS.values():
        one = function(jax.random.key(seed), batch)
        other = function(jax.random.key(seed), data.pad(batch, 4))
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y[:, :12])


def test_rates_by_chi_square():
    """Masked and replaced steps occur with their probabilities, at every position alike."""
    batch = data.make_batch([8] * 3000, 8)
    masked = OPERATORS["mask"](jax.random.key(1), batch).questions == MASK_QUESTION
    counts = np.asarray(masked).sum(0)
    assert (
        stats.chisquare(np.concatenate([counts, 3000 - counts]), [1800.0] * 8 + [1200.0] * 8).pvalue
        > 1e-4
    )
    has = np.array(
        [[len(rows_of(x, q)) > 0 for x in (TABLES.harder, TABLES.easier)] for q in range(13)]
    )
    able = has[np.asarray(batch.questions), np.asarray(batch.responses)]
    replaced = OPERATORS["replace"](jax.random.key(2), batch).questions != batch.questions
    assert not np.asarray(replaced)[~able].any()
    share, n = np.asarray(replaced)[able].mean(), able.sum()
    assert abs(share - 0.3) < 4 * np.sqrt(0.21 / n)


def test_crop_and_permute_starts_are_uniform():
    """A sequence of 6 distinct steps: crops begin at 0 ... 4 equally often."""
    batch = data.make_batch([6] * 4000, 6)
    batch = batch._replace(questions=jnp.broadcast_to(jnp.arange(1, 7), (4000, 6)))
    first = np.asarray(OPERATORS["crop"](jax.random.key(3), batch).questions[:, 0])
    counts = np.bincount(first, minlength=7)[1:]
    assert counts[5] == 0 and stats.chisquare(counts[:5]).pvalue > 1e-4
    shuffled = np.asarray(OPERATORS["permute"](jax.random.key(4), batch).questions)
    # Start 0 (a fifth of the rows) shuffles the first three steps: 6 orders alike, the identity
    # among them also that of other starts.
    orders = [tuple(row[:3]) for row in shuffled if (row[3:] == [4, 5, 6]).all()]
    others = [orders.count(o) for o in ((2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))]
    assert stats.chisquare(others).pvalue > 1e-4 and min(others) > 80


def test_walks_follow_successors():
    walk = jax.jit(lambda key, active: augment.random_walks(key, TABLES, 200, 12, 9, active))
    lengths, dead = set(), 0
    ends = [q for q in range(1, data.QUESTIONS + 1) if not rows_of(TABLES.successors, q)]
    for seed in range(6):
        got = jax.tree.map(np.asarray, walk(jax.random.key(seed), 150))
        assert not got.mask[150:].any() and got.mask[:150, 0].all()
        (length,) = set(got.mask[:150].sum(-1))
        lengths.add(length)
        assert 9 <= length <= 11
        assert (got.concepts == TABLES.concepts[got.questions]).all()
        for row in got.questions[:150, :length].tolist():
            assert row[0] in TABLES.starts
            for a, b in zip(row, row[1:], strict=False):
                if a in ends:
                    dead += 1
                    assert b in TABLES.starts
                else:
                    assert b in rows_of(TABLES.successors, a)
    assert len(lengths) > 1
    assert dead > 0 or not set(ends) & set(TABLES.starts.tolist())


def test_transitions_have_their_training_frequencies():
    got = jax.tree.map(np.asarray, augment.random_walks(jax.random.key(0), TABLES, 3000, 12, 9))
    question = max(range(1, 13), key=lambda q: len(rows_of(TABLES.successors, q)))
    options, expected = np.unique(rows_of(TABLES.successors, question), return_counts=True)
    here = (got.questions[:, :-1] == question) & got.mask[:, 1:]
    followed = got.questions[:, 1:][here]
    counts = np.array([(followed == o).sum() for o in options])
    assert counts.sum() == len(followed) > 500
    p = stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue
    assert len(options) == 1 or p > 1e-4


def test_tables_come_from_the_training_data():
    batch = data.make_batch([9, 12, 4], 12, 0)
    questions, concepts, responses, mask = map(np.asarray, batch)
    pairs = [
        (a, b)
        for row, real in zip(questions.tolist(), mask.sum(-1), strict=True)
        for a, b in zip(row[:real], row[1:real], strict=False)
    ]
    for q in range(data.QUESTIONS + 1):
        assert sorted(rows_of(TABLES.successors, q)) == sorted(b for a, b in pairs if a == q)
    mean = responses[mask].mean()
    rate = {
        int(q): (responses[mask & (questions == q)].sum() + 5 * mean)
        / ((mask & (questions == q)).sum() + 5)
        for q in np.unique(questions[mask])
    }
    assert sorted(rate) == TABLES.starts.tolist()
    for q, own in rate.items():
        easier, harder = rows_of(TABLES.easier, q), rows_of(TABLES.harder, q)
        assert all(rate[e] > own for e in easier) and all(rate[h] < own for h in harder)
        assert len(easier) == min(3, sum(r > own for r in rate.values()))
        assert len(harder) == min(3, sum(r < own for r in rate.values()))
        # The nearest ones: nothing outside the list lies strictly inside its range.
        assert not easier or max(rate[e] for e in easier) <= min(
            [r for e, r in rate.items() if r > own and e not in easier], default=1.0
        )
    unseen = set(range(1, data.QUESTIONS + 1)) - set(rate)
    assert all(not TABLES.concepts[q].any() for q in unseen)


def test_pick_from_empty_lists_falls_back():
    lists = ragged([[], [3, 4], []])
    got = augment.pick(
        lists, jnp.array([0, 1, 1, 2]), jnp.array([0.5, 0.0, 0.999, 0.2]), jnp.array([9, 9, 9, 8])
    )
    assert got.tolist() == [9, 3, 4, 8]
    nothing = ragged([[], []])
    assert augment.pick(nothing, jnp.array([1]), jnp.array([0.5]), jnp.array([7])).tolist() == [7]


def test_errors_name_the_value():
    batch = data.make_batch([4], 5)
    with pytest.raises(ValueError, match="num_questions=2"):
        build_tables([batch], 2)
    with pytest.raises(ValueError, match="no answers"):
        build_tables([batch._replace(mask=jnp.zeros_like(batch.mask))], data.QUESTIONS)
