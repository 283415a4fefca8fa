"""Cleaning against plain Python, collapse of concept-expanded rows, and the counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_jax.tracing.data import (
    CleaningConfig,
    DataError,
    DataWarning,
    Ragged,
    RawAnswers,
    TracingVocabulary,
    clean,
    collapse,
    count_expanded,
    evaluation_batches,
    make_sequences,
    require_collapsed,
)

ALL = CleaningConfig(min_answers=1)
seeds = st.integers(0, 9999)


def raw(rows, **columns):
    """RawAnswers of (student, question, concepts, response) tuples."""
    student, question, concepts, response = zip(*rows, strict=True)
    return RawAnswers(
        student=np.array(student, object),
        question=np.array(question, object),
        concepts=Ragged.from_lists(concepts, object),
        response=np.array(response, float),
        **{key: np.array(value, np.int64) for key, value in columns.items()},
    )


def readable(log):
    return [
        (log.student_ids[s], log.question_ids[q], tuple(log.concept_ids[log.concepts[i]]), int(r))
        for i, (s, q, r) in enumerate(zip(log.student, log.question, log.response, strict=True))
    ]


def expand(answers, seed=0):
    """One row per answer and concept, in the order of the concepts."""
    lengths = answers.concepts.lengths
    again = np.repeat(np.arange(len(lengths)), lengths)
    return dataclasses.replace(
        answers,
        student=answers.student[again],
        question=answers.question[again],
        concepts=Ragged.from_lengths(np.ones(len(again), int), answers.concepts.values),
        response=answers.response[again],
    )


@given(seeds)
def test_collapse_undoes_expansion(random_raw, seed):
    answers = random_raw(seed)
    once, _ = clean(answers, ALL)
    back, report = clean(expand(answers), ALL)
    assert readable(back) == readable(once)
    assert report.concept_expanded == int((answers.concepts.lengths - 1).sum())


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.sets(st.integers(0, 3)),
                          st.integers(0, 1)), min_size=1, max_size=40))  # fmt: skip
def test_collapse_is_idempotent_and_keeps_concepts(rows):
    rows = sorted(rows, key=lambda row: row[0])
    log, _ = clean(raw(rows), dataclasses.replace(ALL, concept_rows="keep"))
    once, removed = collapse(log)
    twice, none = collapse(once)
    assert none == 0 and readable(once) == readable(twice)
    assert removed == count_expanded(log) == len(log) - len(once)
    for student in range(log.num_students):
        before, after = log.of_students([student]), once.of_students([student])
        assert set(before.concepts.values) == set(after.concepts.values)


def test_a_new_attempt_is_no_expansion():
    rows = [("a", 1, [5], 1), ("a", 1, [5], 1), ("a", 1, [6], 1), ("a", 1, [7], 0)]
    log, report = clean(raw(rows), ALL)
    assert readable(log) == [("a", 1, (5,), 1), ("a", 1, (5, 6), 1), ("a", 1, (7,), 0)]
    assert report.concept_expanded == 1
    # Different times are different attempts; the same order number is the same answer.
    assert len(clean(raw(rows, timestamp=[1, 2, 3, 4]), ALL)[0]) == 4
    assert len(clean(raw(rows, order=[1, 1, 1, 2]), ALL)[0]) == 2


def test_evaluation_on_expanded_rows_must_be_asked_for(random_raw):
    config = dataclasses.replace(ALL, concept_rows="keep")
    log, report = clean(expand(random_raw(0)), config)
    assert log.concept_expanded and report.concept_expanded == count_expanded(log) > 0
    sequences = make_sequences(log, np.arange(log.num_students))
    with pytest.raises(DataError, match="allow_concept_expanded=True"):
        evaluation_batches(log, sequences, batch_size=4)
    next(evaluation_batches(log, sequences, batch_size=4, allow_concept_expanded=True))
    # The rows decide, not the flag.
    with pytest.raises(DataError, match="leak"):
        require_collapsed(dataclasses.replace(log, concept_expanded=False))
    require_collapsed(collapse(log)[0])


@given(seeds)
def test_order_of_rows_in_the_file_does_not_matter(random_raw, seed):
    answers = random_raw(seed, longest=12)
    total = len(answers.student)
    times = np.arange(total) * 10
    sorted_log, report = clean(dataclasses.replace(answers, timestamp=times), ALL)
    assert report.out_of_order == 0
    mix = np.random.default_rng(seed).permutation(total)
    mixed = RawAnswers(
        student=answers.student[mix], question=answers.question[mix],
        concepts=answers.concepts.take(mix), response=answers.response[mix],
        timestamp=times[mix],
    )  # fmt: skip
    log, report = clean(mixed, ALL)
    assert readable(log) == readable(sorted_log)
    np.testing.assert_array_equal(times[mix][log.row], log.timestamp)
    last, falls = {}, 0
    for student, time in zip(mixed.student, mixed.timestamp, strict=True):
        falls += last.get(student, -1) > time
        last[student] = time
    assert report.out_of_order == falls


def test_equal_times_keep_the_order_of_the_file():
    rows = [("a", q, [q], 1) for q in (3, 1, 2)]
    log, _ = clean(raw(rows, timestamp=[5, 5, 4]), ALL)
    assert log.question_ids[log.question].tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("rule", "kept"), [("drop", [0, 1]), ("threshold", [0, 1, 0, 1]), ("error", None)]
)
def test_fractional_responses(rule, kept):
    rows = [("a", i, [1], r) for i, r in enumerate([0, 1, 0.25, 0.5, 2, -1, np.nan])]
    config = dataclasses.replace(ALL, fractional=rule)
    if kept is None:
        with pytest.raises(DataError, match="2 responses are between 0 and 1, the first is 0.25"):
            clean(raw(rows), config)
        return
    with pytest.warns(DataWarning):
        log, report = clean(raw(rows), config)
    assert log.response.tolist() == kept
    assert (report.fractional, report.invalid_response) == (2, 3)


@pytest.mark.parametrize("rule", ["unknown", "drop", "error"])
def test_gaps_of_the_concept_map(rule):
    rows = [("a", 1, [], 1), ("a", 2, ["unknown"], 0), ("a", 3, [4], 1)]
    config = dataclasses.replace(ALL, missing_concepts=rule)
    if rule == "error":
        with pytest.raises(DataError, match="1 answers have no concept, the first in row 1"):
            clean(raw(rows), config)
        return
    log, report = clean(raw(rows), config)
    assert report.missing_concept == 1
    assert (log.concepts.lengths >= 1).all()
    if rule == "drop":
        assert log.question_ids.tolist() == [-1, 2, 3]
    else:  # a concept that the source calls 'unknown' stays another one
        assert log.concept_ids.tolist() == ["", "4", "unknown", "(unknown)"]
        assert log.concepts.values.tolist() == [3, 2, 1]


def test_missing_questions_and_students():
    rows = [("a", "", [1], 1), ("a", "q", [1], 0), ("a", "-1", [2], 0)]
    with pytest.warns(DataWarning, match="2 answers without a question dropped"):
        log, _ = clean(raw(rows), ALL)
    assert len(log) == 1 and log.num_concepts == 1  # concepts of dropped rows go too
    with pytest.raises(DataError, match="student id missing in row 2"):
        clean(raw([("a", 1, [1], 1), ("", 1, [1], 1)]), ALL)


@given(seeds, st.integers(1, 20), st.integers(1, 20), st.sampled_from(["first", "chop", "keep"]))
def test_lengths(random_raw, seed, least, most, long):
    answers = random_raw(seed)
    sizes = np.unique(answers.student, return_counts=True)[1]
    config = CleaningConfig(min_answers=least, max_length=most, long=long, min_window=1)
    if sizes.max() < least:
        with pytest.raises(DataError, match="min_answers"):
            clean(answers, config)
        return
    log, report = clean(answers, config)
    kept = sizes[sizes >= least]
    assert report.short_students == (sizes < least).sum()
    assert report.short_rows == sizes[sizes < least].sum()
    expected = np.minimum(kept, most) if long == "first" else kept
    np.testing.assert_array_equal(np.diff(log.offsets), expected)
    assert report.rows_read == report.rows_kept + report.short_rows + report.cut_rows
    sequences = make_sequences(log, np.arange(log.num_students), config)
    if long != "keep":
        assert sequences.lengths.max() <= most
    covered = np.concatenate([np.arange(b, e) for b, e in zip(sequences.begin, sequences.end,
                                                              strict=True)])  # fmt: skip
    np.testing.assert_array_equal(covered, np.arange(len(log)))
    assert (log.student[sequences.begin] == sequences.student).all()
    assert (log.student[sequences.end - 1] == sequences.student).all()


def test_ids_sort_as_numbers_only_if_all_are():
    log, _ = clean(raw([("10", "a", [1], 1), ("9", "b", [1], 1)]), ALL)
    assert log.student_ids.tolist() == [9, 10]
    log, _ = clean(raw([("10", "a", [1], 1), ("09", "b", [1], 1)]), ALL)
    assert log.student_ids.tolist() == ["09", "10"]


def test_unknown_questions_at_prediction():
    log, _ = clean(raw([("a", 5, [1, 2], 1), ("a", 7, [2], 1), ("a", 5, [3], 0)]), ALL)
    vocabulary = TracingVocabulary.of(log)
    dense = vocabulary.questions(["7", 5])
    assert log.question_ids[dense].tolist() == [7, 5]
    assert vocabulary.concepts(dense).tolist() == [[2, 0, 0], [1, 2, 3]]
    with pytest.raises(DataError, match="1 of 2 questions are unknown, the first is 8"):
        vocabulary.questions([5, 8])
    assert vocabulary.questions([8], unknown="zero").tolist() == [0]
    assert vocabulary.concepts(np.array([[0]])).tolist() == [[[0, 0, 0]]]


def test_settings_are_checked():
    for key, value in (("fractional", "round"), ("min_answers", 0), ("threshold", 0.0)):
        with pytest.raises(DataError, match=f"data.clean.{key}"):
            CleaningConfig(**{key: value})
    with pytest.raises(DataError, match="holds no answers"):
        clean(dataclasses.replace(raw([("a", 1, [1], 1)]), student=np.zeros(0, int)), ALL)
