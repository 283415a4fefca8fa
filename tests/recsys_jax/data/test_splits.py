"""Order and splits: no training input or label is the held-out target or anything after it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_jax.data import (
    DataError,
    FuxiOfficial,
    LeaveOneOut,
    TemporalGlobal,
    UserSequences,
    build_log,
    make_split,
    next_event_examples,
    tile_windows,
    training_interactions,
    training_item_counts,
)


@st.composite
def histories(draw, min_users=1):
    """UserSequences with many equal times; item ids are unique per event, so leaks show."""
    lengths = draw(st.lists(st.integers(0, 12), min_size=min_users, max_size=8))
    total = sum(lengths)
    times = draw(st.lists(st.integers(0, 9), min_size=total, max_size=total))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = np.array(times, np.int64)
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        times[start:stop].sort()
    return UserSequences(np.arange(1, total + 1, dtype=np.int32), times, offsets, total)


def seen(examples, max_len):
    """user -> positions of all inputs and labels of the windows."""
    positions = {}
    starts = examples.starts(max_len).tolist()
    for user, start, target in zip(examples.user.tolist(), starts, examples.target, strict=True):
        assert start < target
        positions.setdefault(user, set()).update(range(start, int(target) + 1))
    return positions


@given(histories(), st.integers(1, 5), st.booleans())
def test_leave_one_out_and_official_never_leak(sequences, max_len, official):
    split = (FuxiOfficial() if official else LeaveOneOut())(sequences)
    holdouts = 1 if official else 2
    train = seen(split.train, max_len)
    lengths = sequences.lengths.tolist()
    for part, back in ((split.test, 1), (split.valid, 2)):
        if part is split.valid and official:
            assert len(part) == 0
            continue
        expected = [u for u, n in enumerate(lengths) if n >= 2 + holdouts]
        assert part.user.tolist() == expected
        for user, target in zip(part.user.tolist(), part.target.tolist(), strict=True):
            assert target == lengths[user] - back
            assert max(train[user]) < target
    for user, target in zip(split.valid.user.tolist(), split.valid.target.tolist(), strict=True):
        assert split.test.target[split.test.user.tolist().index(user)] == target + 1
    for user, target in zip(split.train.user.tolist(), split.train.target.tolist(), strict=True):
        held_out = holdouts if lengths[user] >= 2 + holdouts else 0
        assert target == lengths[user] - 1 - held_out
    assert sorted(train) == [u for u, n in enumerate(lengths) if n >= 2]


@given(
    histories(min_users=2), st.integers(0, 9), st.integers(0, 9),
    st.sampled_from(["first", "last", "all"]), st.integers(1, 5),
)  # fmt: skip
def test_temporal_split_never_leaks(sequences, valid_from, width, targets, max_len):
    rule = TemporalGlobal(valid_from=valid_from, test_from=valid_from + width, targets=targets)
    try:
        split = rule(sequences)
    except DataError as error:
        before = [np.sum(sequences.user(u)[1] < valid_from) for u in range(sequences.num_users)]
        assert max(before) < 2 and "No user has two events before" in str(error)
        return
    for user, positions in seen(split.train, max_len).items():
        assert sequences.user(user)[1][max(positions)] < valid_from
    for part, low, high in (
        (split.valid, valid_from, valid_from + width),
        (split.test, valid_from + width, 100),
    ):
        found = {}
        for user, target in zip(part.user.tolist(), part.target.tolist(), strict=True):
            found.setdefault(user, []).append(target)
        for user in range(sequences.num_users):
            times = sequences.user(user)[1]
            period = [p for p, t in enumerate(times) if low <= t < high and p >= 1]
            pick = {"first": period[:1], "last": period[-1:], "all": period}[targets]
            assert found.get(user, []) == pick


@pytest.mark.filterwarnings("ignore::recsys_jax.data.DataWarning")
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=8, max_size=40))
def test_stable_order_is_user_time_row(events):
    users, times = map(np.array, zip(*events, strict=True))
    counts = np.bincount(users)
    if not (counts > 1).any():
        return
    rows = np.arange(len(users))
    log = build_log(users=users, items=rows, timestamps=times, source="test")
    expected = sorted(
        (u, t, r) for u, t, r in zip(users, times, rows, strict=True) if counts[u] > 1
    )
    sequences = UserSequences.from_log(log)
    assert log.item_ids[sequences.items].tolist() == [r for _, _, r in expected]
    official = UserSequences.from_log(log, "official")
    np.testing.assert_array_equal(official.timestamps, sequences.timestamps)
    np.testing.assert_array_equal(official.offsets, sequences.offsets)
    for user in range(log.num_users):
        assert sorted(official.user(user)[0]) == sorted(sequences.user(user)[0])


def test_official_order_is_the_unstable_sort_of_the_whole_log():
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 5, 4000), rng.integers(0, 30, 4000)
    log = build_log(users=users, items=np.arange(4000), timestamps=times, source="test")
    by_time = np.argsort(times, kind="quicksort")
    expected = np.concatenate([by_time[users[by_time] == u] for u in range(5)])
    official = UserSequences.from_log(log, "official")
    np.testing.assert_array_equal(log.item_ids[official.items], expected)
    with pytest.raises(DataError, match="allowed are stable, official"):
        UserSequences.from_log(log, "random")


@given(histories(), st.integers(1, 5))
def test_tiles_cover_every_label_once(sequences, max_len):
    train = LeaveOneOut()(sequences).train
    labels = {}
    tiled = tile_windows(train, max_len)
    assert (tiled.lengths(max_len) >= 1).all()
    starts = tiled.starts(max_len).tolist()
    for user, start, target in zip(tiled.user.tolist(), starts, tiled.target, strict=True):
        labels.setdefault(user, []).extend(range(start + 1, int(target) + 1))
    for user, target in zip(train.user.tolist(), train.target.tolist(), strict=True):
        assert sorted(labels[user]) == list(range(1, target + 1))


@given(histories())
def test_training_interactions_and_counts(sequences):
    train = LeaveOneOut()(sequences).train
    users, items, times = training_interactions(sequences, train)
    expected = []
    for user, target in zip(train.user.tolist(), train.target.tolist(), strict=True):
        own_items, own_times = sequences.user(user)
        expected += [(user, own_items[p], own_times[p]) for p in range(target + 1)]
    assert list(zip(users, items, times, strict=True)) == expected
    counts = training_item_counts(sequences, train)
    np.testing.assert_array_equal(counts, np.bincount(items, minlength=sequences.num_items + 1))


def test_quantiles_and_next_event():
    times = np.arange(100, dtype=np.int64)
    offsets = np.array([0, 50, 50, 100])
    sequences = UserSequences(np.ones(100, np.int32), times, offsets, 1)
    assert TemporalGlobal(valid_quantile=0.5, test_quantile=0.75).times(sequences) == (50, 75)
    examples = next_event_examples(sequences)
    assert examples.user.tolist() == [0, 2] and examples.target.tolist() == [50, 50]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_split("leave_one_uot"), "Did you mean 'leave_one_out'"),
        (lambda: make_split("temporal", target="all"), "no option 'target'.*'targets'"),
        (lambda: make_split("temporal", targets="some"), "allowed are first, last, all"),
        (lambda: make_split("temporal", valid_quantile=1.5), "between 0 and 1, got 1.5"),
    ],
)
def test_messages(make, message):
    with pytest.raises(DataError, match=message):
        make()
    sequences = UserSequences(np.ones(2, np.int32), np.arange(2), np.array([0, 2]), 1)
    with pytest.raises(DataError, match="starts at 9, after the test period at 5"):
        TemporalGlobal(valid_from=9, test_from=5)(sequences)
