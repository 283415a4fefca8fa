"""Students in one part only, nested subsets, train-only tables, padded and resumable batches."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.config import ConfigError
from recsys_jax.tracing.data import (
    CleaningConfig,
    DataError,
    SplitConfig,
    batches,
    evaluation_batches,
    load,
    make_sequences,
    make_split,
    nested_subset,
    training_tables,
)

seeds = st.integers(0, 9999)
KEEP = CleaningConfig(min_answers=1, long="keep")


@given(seeds, st.sampled_from(["random", "folds", "given"]), st.integers(0, 2))
def test_no_student_in_two_parts(random_log, seed, kind, fold):
    log = random_log(seed, students=20)
    folds = np.random.default_rng(seed).permutation(np.arange(log.num_students) % 3)
    log = dataclasses.replace(log, fold=folds.astype(np.int32))
    config = SplitConfig(kind=kind, num_folds=3, fold=fold, seed=seed)
    split = make_split(log, config)
    together = np.concatenate([split.train, split.valid, split.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(log.num_students))
    again = make_split(log, config)
    np.testing.assert_array_equal(split.train, again.train)
    if kind == "given":
        assert set(folds[split.test]) == {fold} and set(folds[split.valid]) == {(fold + 1) % 3}


def test_folds_are_a_partition_of_equal_parts(random_log):
    log = random_log(1, students=23)
    tests = [make_split(log, SplitConfig(kind="folds", fold=f)).test for f in range(5)]
    np.testing.assert_array_equal(np.sort(np.concatenate(tests)), np.arange(23))
    assert {len(t) for t in tests} == {4, 5}


def test_given_division_with_a_test_part(random_log):
    log = random_log(2, students=20)
    fold = np.where(np.arange(20) < 5, -1, 0).astype(np.int32)
    split = make_split(dataclasses.replace(log, fold=fold), SplitConfig(kind="given"))
    assert split.test.tolist() == [0, 1, 2, 3, 4]
    assert len(split.valid) == 2 and len(split.train) == 13
    with pytest.raises(DataError, match="no division of its own"):
        make_split(log, SplitConfig(kind="given"))


@given(st.integers(1, 200), seeds, st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_subsets_are_nested(count, seed, fractions):
    students = np.arange(count) * 3
    subsets = [nested_subset(students, f, seed) for f in sorted(fractions)]
    for small, large in itertools.pairwise(subsets):
        assert set(small) <= set(large) <= set(students)
    for fraction, subset in zip(sorted(fractions), subsets, strict=True):
        assert fraction * count - 1e-6 <= len(subset) < fraction * count + 1
        assert (np.diff(subset) > 0).all()
    np.testing.assert_array_equal(nested_subset(students, 1.0, seed), students)


def test_sparsity_leaves_the_held_out_students_alone():
    base = {"simulator": {"num_students": 200}}
    whole = load(base)
    parts = [load(base | {"split": {"train_fraction": f}}).splits for f in (0.1, 0.25)]
    assert [len(p.train) for p in parts] == [15, 36] and len(whole.splits.train) == 144
    assert set(parts[0].train) < set(parts[1].train) < set(whole.splits.train)
    for part in parts:
        np.testing.assert_array_equal(part.test, whole.splits.test)
        np.testing.assert_array_equal(part.valid, whole.splits.valid)


@given(seeds)
def test_tables_against_plain_python(random_log, seed):
    log = random_log(seed)
    students = np.arange(0, log.num_students, 2)
    sequences = make_sequences(log, students, KEEP)
    tables = training_tables(log, sequences, smoothing=2.0, num_candidates=3)
    rows = [i for i in range(len(log)) if log.student[i] % 2 == 0]
    mean = log.response[rows].mean()
    rate = {}
    for q in {int(log.question[i]) for i in rows}:
        own = [int(log.response[i]) for i in rows if log.question[i] == q]
        rate[q] = (sum(own) + 2 * mean) / (len(own) + 2)
        assert tables.count[q] == len(own) and tables.correct[q] == sum(own)
        np.testing.assert_allclose(tables.rate[q], rate[q])
    assert sorted(rate) == sorted(tables.order.tolist())
    assert (np.diff(tables.rate[tables.order]) >= 0).all()
    for q in range(1, log.num_questions + 1):
        follow = [int(log.question[i + 1]) for i in rows
                  if log.question[i] == q and i + 1 in rows
                  and log.student[i + 1] == log.student[i]]  # fmt: skip
        assert sorted(follow) == tables.successors[q].tolist()
        for found, sign in ((tables.easier[q], 1), (tables.harder[q], -1)):
            better = [o for o in rate if q in rate and sign * (rate[o] - rate[q]) > 1e-12]
            assert len(found) == min(3, len(better)) and set(found.tolist()) <= set(better)
            gaps = sorted(abs(rate[o] - rate[q]) for o in better)[:3]
            np.testing.assert_allclose([abs(rate[o] - rate[q]) for o in found], gaps)


@given(seeds)
def test_tables_do_not_read_held_out_students(random_log, seed):
    log = random_log(seed)
    sequences = make_sequences(log, np.arange(3), KEEP)
    tables = training_tables(log, sequences)
    held_out = log.student >= 3
    changed = dataclasses.replace(
        log,
        response=np.where(held_out, 1 - log.response, log.response).astype(np.int8),
        question=np.where(held_out, 1, log.question).astype(np.int32),
    )
    other = training_tables(changed, sequences)
    for name in ("count", "rate", "order"):
        np.testing.assert_array_equal(getattr(tables, name), getattr(other, name))
    for name in ("successors", "easier", "harder"):
        np.testing.assert_array_equal(getattr(tables, name).values, getattr(other, name).values)


def unpack(batch, log):
    """The answers in a batch as tuples, with the padding checked."""
    found = []
    for row in range(len(batch.mask)):
        count = int(batch.mask[row].sum())
        assert batch.mask[row, :count].all()
        for field in (batch.questions, batch.concepts, batch.responses):
            assert not field[row, count:].any()
        if count:
            found.append(tuple(
                (int(q), tuple(c[c > 0].tolist()), int(r))
                for q, c, r in zip(batch.questions[row, :count], batch.concepts[row, :count],
                                   batch.responses[row, :count], strict=True)
            ))  # fmt: skip
    return found


def expected(log, sequences):
    return [
        tuple((int(log.question[i]), tuple(log.concepts[i].tolist()), int(log.response[i]))
              for i in range(b, e))
        for b, e in zip(sequences.begin, sequences.end, strict=True)
    ]  # fmt: skip


def epoch_of(iterator, log, sequences):
    """Batches until every sequence was seen once."""
    found, taken = [], []
    while len(found) < len(sequences):
        batch = next(iterator)
        found += unpack(batch, log)
        taken.append(batch)
    assert sorted(found) == sorted(expected(log, sequences))
    return taken


@given(seeds, st.integers(1, 9), st.sampled_from(["fixed", "longer", "buckets"]))
def test_every_sequence_once_per_epoch(random_log, seed, batch_size, how):
    log = random_log(seed)
    sequences = make_sequences(log, np.arange(log.num_students), KEEP)
    longest = int(sequences.lengths.max())
    options = {"fixed": {}, "longer": {"length": longest + 7},
               "buckets": {"buckets": sorted({4, 9, longest + 9})}}[how]  # fmt: skip
    dataset = batches(log, sequences, batch_size=batch_size, seed=seed, prefetch=0, **options)
    iterator = iter(dataset)
    first = epoch_of(iterator, log, sequences)
    epoch_of(iterator, log, sequences)
    for batch in first:
        assert batch.questions.shape[0] == batch_size
        assert batch.concepts.shape[2] == log.max_concepts
        assert batch.questions.dtype == batch.responses.dtype == np.int32
        if how == "buckets":  # no sequence of a smaller bucket in a larger one
            edges = np.array(options["buckets"])
            lengths = batch.mask.sum(1)
            used = np.searchsorted(edges, lengths[lengths > 0])
            assert (edges[used] == batch.mask.shape[1]).all()


def test_order_depends_on_the_seed_and_epoch_only(random_log):
    log = random_log(5, students=40)
    sequences = make_sequences(log, np.arange(40), KEEP)

    def stream(seed, count=20):
        iterator = iter(batches(log, sequences, batch_size=4, seed=seed, prefetch=0))
        return [next(iterator) for _ in range(count)]

    a, b, c = stream(1), stream(1), stream(2)
    for x, y in zip(a, b, strict=True):
        for u, v in zip(x, y, strict=True):
            np.testing.assert_array_equal(u, v)
    assert any((x.questions != y.questions).any() for x, y in zip(a, c, strict=True))
    assert any((x.questions != y.questions).any() for x, y in zip(a[:10], a[10:], strict=True))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_iterator_goes_on_where_it_was_saved(random_log, prefetch):
    log = random_log(6, students=30)
    sequences = make_sequences(log, np.arange(30), KEEP)
    dataset = batches(log, sequences, batch_size=4, buckets=[8, 30], prefetch=prefetch)
    for cut in (0, 1, 7, 13):
        iterator = iter(dataset)
        for _ in range(cut):
            next(iterator)
        state = iterator.get_state()
        want = [next(iterator) for _ in range(5)]
        other = iter(dataset)
        other.set_state(state)
        for batch in want:
            np.testing.assert_array_equal(batch.questions, next(other).questions)


def test_processes_share_a_batch(random_log):
    log = random_log(7, students=30)
    sequences = make_sequences(log, np.arange(30), KEEP)
    options = {"batch_size": 6, "seed": 3, "prefetch": 0}
    whole = iter(batches(log, sequences, **options))
    parts = [iter(batches(log, sequences, process_index=i, process_count=3, **options))
             for i in range(3)]  # fmt: skip
    for _ in range(8):
        joined = np.concatenate([next(part).questions for part in parts])
        np.testing.assert_array_equal(joined, next(whole).questions)


@given(seeds, st.integers(1, 9), st.integers(0, 8))
def test_evaluation_in_order_whatever_the_padding(random_log, seed, batch_size, more):
    log = random_log(seed)
    sequences = make_sequences(log, np.arange(1, log.num_students), KEEP)
    length = int(sequences.lengths.max()) + more
    found, students, rows = [], [], []
    for part in evaluation_batches(log, sequences, batch_size=batch_size, length=length):
        assert part.batch.mask.shape == (batch_size, length) == part.rows.shape
        found += unpack(part.batch, log)
        students += part.students[part.students >= 0].tolist()
        np.testing.assert_array_equal(part.rows >= 0, part.batch.mask)
        rows += part.rows[part.batch.mask].tolist()
    assert found == expected(log, sequences) and students == sequences.student.tolist()
    assert rows == np.flatnonzero(log.student > 0).tolist()


def test_mistakes_are_explained(random_log):
    log = random_log(8)
    sequences = make_sequences(log, np.arange(log.num_students), KEEP)
    for options in ({"length": 2}, {"buckets": [5, 3]}, {"buckets": [40], "length": 40}):
        with pytest.raises(DataError):
            batches(log, sequences, batch_size=2, **options)
    with pytest.raises(DataError, match="cannot be divided among 3 processes"):
        batches(log, sequences, batch_size=4, process_count=3)
    with pytest.raises(DataError, match=r"must be in \(0, 1\]"):
        make_split(log, SplitConfig(train_fraction=0.0))
    with pytest.raises(ConfigError, match="Did you mean --config.data.split.seed"):
        load({"split": {"sed": 1}})
    with pytest.raises(ConfigError, match="data.kind='pykt2' is unknown.*Did you mean 'pykt'"):
        load({"kind": "pykt2"})
    with pytest.raises(ConfigError, match="needs a file or folder"):
        load({"kind": "akt"})
