"""Batches against a per-user reference in plain Python; resume; processes; negatives."""

from __future__ import annotations

import json

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_jax.data import DataError, Examples, LeaveOneOut, UserSequences, next_event_examples
from recsys_jax.data.batches import pairwise_dataset, training_dataset
from recsys_jax.data.evaluation import evaluation_batches
from recsys_jax.data.windows import FIELDS, pack_epoch, packed_rows


def random_sequences(seed, users=30, longest=40, items=60):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.concatenate([np.sort(rng.integers(0, 1 << 40, 1) + rng.integers(0, 999, n))
                            for n in lengths])  # fmt: skip
    chosen = rng.integers(1, items + 1, offsets[-1]).astype(np.int32)
    return UserSequences(chosen, times, offsets, items)


def window(sequences, examples, which, max_len):
    """The six fields of one example, event by event."""
    user, target = examples.user[which], int(examples.target[which])
    begin = max(int(examples.begin[which]), target - max_len)
    items, times = sequences.user(user)
    return [
        (int(items[p]), int(items[p + 1]), int(times[p] - times[begin]),
         int(times[p + 1] - times[begin]), p - begin)
        for p in range(begin, target)
    ]  # fmt: skip


def unpack(batch):
    """Windows found in a batch [R, N], as sorted lists of event tuples."""
    found = []
    for row in range(len(batch["items"])):
        segments = batch["segment_ids"][row]
        used = np.count_nonzero(segments)
        assert (segments[used:] == 0).all() and (np.diff(segments[:used]) >= 0).all()
        assert set(segments[:used]) == set(range(1, int(segments.max(initial=0)) + 1))
        for name in FIELDS:
            assert batch[name].dtype == np.int32
            assert (batch[name][row, used:] == 0).all()
        for segment in range(1, int(segments.max(initial=0)) + 1):
            cells = np.flatnonzero(segments == segment)
            found.append([tuple(int(batch[f][row, c]) for f in FIELDS[:5]) for c in cells])
    return found


@given(st.integers(0, 99), st.sampled_from([1, 3, 8]), st.integers(1, 30), st.booleans())
def test_every_example_once_per_epoch(seed, batch_size, max_len, packed):
    sequences = random_sequences(seed)
    train = LeaveOneOut()(sequences).train
    dataset = training_dataset(
        sequences, train, batch_size=batch_size, max_len=max_len, packed=packed,
        row_length=max_len + 13 if packed else None, seed=seed, prefetch=0,
    )  # fmt: skip
    expected = sorted(window(sequences, train, w, max_len) for w in range(len(train)))
    iterator = iter(dataset)
    orders = []
    for epoch in range(2):
        found, rows = [], set()
        while iterator.get_state()["epoch"] == epoch:
            batch = next(iterator)
            found += unpack(batch)
            rows.add(batch["items"].shape)
        assert len(rows) == 1
        assert sorted(found) == expected
        orders.append(found)
    if len(expected) > 8:
        assert orders[0] != orders[1], "epochs must be shuffled anew"


@given(st.lists(st.integers(1, 20), max_size=80), st.integers(1, 5), st.integers(20, 50))
def test_packing_places_windows_without_overlap(lengths, rows, row_length):
    lengths = np.array(lengths, np.int64)
    batch, row, column, segment = pack_epoch(lengths, rows, row_length, lookahead=4)
    cells = set()
    for b, r, c, n in zip(batch, row, column, lengths, strict=True):
        assert 0 <= r < rows and c + n <= row_length
        own = {(b, r, c + k) for k in range(n)}
        assert not own & cells
        cells |= own
    for b, r in {(b, r) for b, r in zip(batch, row, strict=True)}:
        here = np.flatnonzero((batch == b) & (row == r))
        here = here[np.argsort(column[here])]
        assert segment[here].tolist() == list(range(1, len(here) + 1))
        assert column[here].tolist() == (np.cumsum(lengths[here]) - lengths[here]).tolist()
    assert sorted(set(batch)) == list(range(len(set(batch))))


def test_packed_rows_hold_about_batch_size_examples():
    lengths = np.random.default_rng(0).integers(1, 200, 4000)
    for batch_size in (32, 128):
        rows = packed_rows(lengths, batch_size, 512)
        batch, _, _, _ = pack_epoch(lengths, rows, 512)
        assert len(lengths) / (batch.max() + 1) == pytest.approx(batch_size, rel=0.08)
        filled = np.bincount(batch, weights=lengths)[:-1] / (rows * 512)
        assert filled.mean() > 0.95
    assert packed_rows(lengths, 32, 512, multiple_of=8) % 8 == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dispatch", [1, 3])
def test_resume_is_exact_and_state_is_json(packed, dispatch):
    sequences = random_sequences(1)
    train = LeaveOneOut()(sequences).train
    options = dict(batch_size=4, max_len=10, packed=packed, row_length=25 if packed else None)
    dataset = training_dataset(sequences, train, **options, dispatch=dispatch, prefetch=2)
    iterator = iter(dataset)
    batches, states = [], []
    for _ in range(16):
        states.append(json.loads(json.dumps(iterator.get_state())))
        batches.append(next(iterator))
    assert states[-1]["epoch"] >= 1
    for at in (0, 1, 5, 14, 3):  # also backwards, and on a fresh iterator
        again = iter(dataset)
        again.set_state(states[at])
        for expected in batches[at : at + 2]:
            got = next(again)
            assert got.keys() == expected.keys()
            for name in got:
                np.testing.assert_array_equal(got[name], expected[name])
        again.close()
    iterator.close()


def test_grain_checkpoint_property():
    sequences = random_sequences(2, users=9)
    train = LeaveOneOut()(sequences).train
    dataset = training_dataset(sequences, train, batch_size=4, max_len=6, prefetch=2)
    limited = grain.experimental.LimitIterDataset(dataset, 6)
    grain.experimental.assert_equal_output_after_checkpoint(limited)


def test_dispatch_stacks_the_same_batches():
    sequences = random_sequences(3)
    train = LeaveOneOut()(sequences).train
    single = iter(training_dataset(sequences, train, batch_size=4, max_len=8, prefetch=0))
    stacked = iter(training_dataset(sequences, train, batch_size=4, max_len=8, dispatch=5))
    for _ in range(3):
        got = next(stacked)
        for k in range(5):
            for name, value in next(single).items():
                np.testing.assert_array_equal(got[name][k], value)
    stacked.close()


@pytest.mark.parametrize("packed", [False, True])
def test_global_batch_does_not_depend_on_process_count(packed):
    sequences = random_sequences(4)
    split = LeaveOneOut()(sequences)
    options = dict(batch_size=8, max_len=10, packed=packed, prefetch=0)
    if packed:
        options |= dict(row_length=25, rows=4)
    whole = iter(training_dataset(sequences, split.train, **options))
    parts = [
        iter(training_dataset(sequences, split.train, **options, process_index=p, process_count=4))
        for p in range(4)
    ]
    for _ in range(9):
        expected, got = next(whole), [next(part) for part in parts]
        for name in FIELDS:
            np.testing.assert_array_equal(np.concatenate([g[name] for g in got]), expected[name])
    whole = list(evaluation_batches(sequences, split.test, batch_size=8, max_len=10))
    parts = [
        list(evaluation_batches(sequences, split.test, batch_size=8, max_len=10,
                                process_index=p, process_count=2))
        for p in range(2)
    ]  # fmt: skip
    for index, expected in enumerate(whole):
        for name, value in expected.items():
            got = np.concatenate([part[index][name] for part in parts])
            np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize("filter", ["all", "window"])
@pytest.mark.parametrize("buckets", [False, True])
def test_evaluation_batches(filter, buckets):
    sequences = random_sequences(5, users=37)
    test = LeaveOneOut()(sequences).test
    batches = evaluation_batches(
        sequences, test, batch_size=8, max_len=30, filter=filter, buckets=buckets
    )
    users = []
    assert len(list(batches)) == len(batches) == -(-len(test) // 8)
    for batch in batches:
        filler = batch["users"] < 0
        assert not batch["items"][filler].any() and not batch["history"][filler].any()
        assert not batch["lengths"][filler].any() and not batch["targets"][filler].any()
        assert (batch["items"].shape[1], batch["history"].shape[1]) in batches.shapes
        for row in np.flatnonzero(~filler):
            user = int(batch["users"][row])
            users.append(user)
            which = test.user.tolist().index(user)
            expected = window(sequences, test, which, 30)
            assert unpack({n: batch[n][row : row + 1] for n in FIELDS}) == [expected]
            assert batch["lengths"][row] == len(expected)
            target = int(test.target[which])
            items = sequences.user(user)[0]
            assert batch["targets"][row] == items[target]
            begin = 0 if filter == "all" else max(0, target - 30)
            past = batch["history"][row]
            assert past[past > 0].tolist() == items[begin:target].tolist()
    assert sorted(users) == test.user.tolist()
    assert len(batches.shapes) <= (6 if buckets else 1)
    if buckets:
        assert min(n for n, _ in batches.shapes) < 30


def test_next_event_batches_know_no_target():
    sequences = random_sequences(6, users=5)
    examples = next_event_examples(sequences)
    ends = sequences.offsets[1:] - 1
    for times in (None, sequences.timestamps[ends] + 77):
        (batch,) = evaluation_batches(
            sequences, examples, batch_size=8, max_len=100, buckets=False, request_times=times
        )
        for row, user in enumerate(batch["users"][:5]):
            items, stamps = sequences.user(user)
            n = len(items)
            assert batch["lengths"][row] == n and batch["targets"][row] == 0
            assert batch["items"][row, :n].tolist() == items.tolist()
            assert batch["labels"][row, :n].tolist() == [*items[1:].tolist(), 0]
            wait = 0 if times is None else 77
            assert batch["query_times"][row, n - 1] == stamps[-1] - stamps[0] + wait


def test_negatives_are_unseen_and_uniform():
    sequences = random_sequences(7, users=3, longest=20, items=12)
    train = LeaveOneOut()(sequences).train
    history = {}
    for user, target in zip(train.user.tolist(), train.target.tolist(), strict=True):
        history[user] = set(sequences.user(user)[0][: target + 1].tolist())
    total = int((train.target + 1).sum())
    iterator = iter(pairwise_dataset(sequences, train, batch_size=7, prefetch=0))
    positives, drawn = [], {user: np.zeros(13, int) for user in history}
    epochs = 400
    while iterator.get_state()["epoch"] < epochs:
        first = iterator.get_state()["epoch"] == 0
        batch = next(iterator)
        real = batch["positives"] > 0
        for user, positive, negative in zip(
            batch["users"][real], batch["positives"][real], batch["negatives"][real], strict=True
        ):
            assert positive in history[user] and negative not in history[user]
            drawn[user][negative] += 1
            positives += [(user, positive)] * first
    assert len(positives) == total
    for user, counts in drawn.items():
        unseen = [item for item in range(1, 13) if item not in history[user]]
        expected = counts.sum() / len(unseen)
        # Chi-square far beyond its 1e-6 quantile would mean a biased sampler; seed is fixed.
        assert sum((counts[i] - expected) ** 2 / expected for i in unseen) < 60


def test_messages():
    sequences = random_sequences(8)
    train = LeaveOneOut()(sequences).train
    options = dict(batch_size=6, max_len=10)
    with pytest.raises(DataError, match="6 rows cannot be divided among 4 processes"):
        training_dataset(sequences, train, **options, process_count=4)
    with pytest.raises(DataError, match="data.max_len must be at least 1, got 0"):
        training_dataset(sequences, train, batch_size=6, max_len=0)
    with pytest.raises(DataError, match="no training examples"):
        training_dataset(sequences, train[:0], **options)
    with pytest.raises(DataError, match="does not fit a row of 5"):
        next(iter(training_dataset(sequences, train, **options, packed=True, row_length=5,
                                   prefetch=0)))  # fmt: skip
    with pytest.raises(DataError, match="'al' is unknown; allowed are all, window"):
        evaluation_batches(sequences, train, **options, filter="al")
    full = UserSequences(np.array([1, 2, 1], np.int32), np.arange(3), np.array([0, 3]), 2)
    with pytest.raises(DataError, match="touched all 2 items"):
        pairwise_dataset(full, Examples.make(np.array([0]), np.array([2])), batch_size=2)
    wide = UserSequences(np.array([1, 2], np.int32), np.array([0, 1 << 33]), np.array([0, 2]), 2)
    with pytest.raises(DataError, match="spans 8589934592 time units.*data.time_scale"):
        list(evaluation_batches(wide, Examples.make(np.array([0]), np.array([1])), **options))
