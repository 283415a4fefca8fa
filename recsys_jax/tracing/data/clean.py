"""From what a reader found to an AnswerLog, with every row that goes counted and explained."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np

from recsys_jax.data.errors import DataError, DataWarning
from recsys_jax.tracing.data.cleaning import CleaningConfig, CleaningReport
from recsys_jax.tracing.data.expansion import collapse, count_expanded
from recsys_jax.tracing.data.log import AnswerLog, RawAnswers
from recsys_jax.tracing.data.ragged import Ragged, sorted_sets

UNKNOWN = "unknown"  # original id of the concept that stands for 'no concept known'


def clean(
    raw: RawAnswers, config: CleaningConfig | None = None
) -> tuple[AnswerLog, CleaningReport]:
    """Checks, sorts, collapses and filters answers and gives out dense ids.

    Dense ids follow the sorted original ids of what is kept (numeric order where all are whole
    numbers), so they do not depend on the order of the file.

    Raises:
      DataError: no rows, columns of different lengths, what a rule 'error' forbids, nobody left.
    """
    config = CleaningConfig() if config is None else config
    total = _check_shape(raw)
    count: dict[str, Any] = {"rows_read": total}
    student, student_ids = encode_ids(raw.student, f"{raw.source}: student")
    count["students_read"] = len(student_ids)
    count["out_of_order"] = _out_of_order(student, raw.timestamp, raw.order)

    response, keep = _responses(raw, config, count)
    if raw.question is not None:
        missing = missing_ids(raw.question)
        count["missing_question"] = int((keep & missing).sum())
        keep &= ~missing
    gap = raw.concepts.lengths == 0
    count["missing_concept"] = int((keep & gap).sum())
    if count["missing_concept"] and config.missing_concepts == "error":
        raise DataError(
            f"{raw.source}: {count['missing_concept']} answers have no concept, the first in row "
            f"{int(np.argmax(keep & gap)) + 1}. Complete the map of concepts, or set "
            "--config.data.clean.missing_concepts to 'unknown' or 'drop'."
        )
    if config.missing_concepts == "drop":
        keep &= ~gap
    if not keep.any():
        raise DataError(
            f"{raw.source}: none of the {total} answers can be used ({_reasons(count)})."
        )

    rows = np.flatnonzero(keep)
    rows = rows[_time_order(student, raw.timestamp, raw.order, rows)]
    concepts, concept_ids = _concepts(raw.concepts.take(rows))
    if raw.question is None:
        question, question_ids = _joint_questions(concepts, concept_ids)
    else:
        question, question_ids = encode_ids(raw.question[rows], f"{raw.source}: question")
        question, question_ids = question + 1, _with_padding(question_ids)
    log = AnswerLog(
        student=student[rows].astype(np.int32),
        question=question.astype(np.int32),
        concepts=concepts,
        response=response[rows].astype(np.int8),
        row=rows.astype(np.int64),
        student_ids=student_ids,
        question_ids=question_ids,
        concept_ids=concept_ids,
        timestamp=None if raw.timestamp is None else raw.timestamp[rows],
        order=None if raw.order is None else raw.order[rows],
        has_questions=raw.question is not None,
        name=raw.name,
        licence=raw.licence,
        citation=raw.citation,
    )
    before = len(log)
    if config.concept_rows == "collapse":
        log, count["concept_expanded"] = collapse(log)
    else:
        count["concept_expanded"] = count_expanded(log)
        log = dataclasses.replace(log, concept_expanded=count["concept_expanded"] > 0)
    count["concept_expanded_share"] = count["concept_expanded"] / before
    log = _lengths(log, config, count, raw.source)
    log = compress(log)
    if raw.fold:
        folds = [raw.fold.get(key, raw.fold.get(str(key), 0)) for key in log.student_ids.tolist()]
        log = dataclasses.replace(log, fold=np.array(folds, np.int32))
    notes = raw.notes
    if raw.question is None:
        notes += ("The source has no question ids: a set of concepts stands as a question.",)
    report = CleaningReport(
        source=raw.source,
        rows_kept=len(log),
        students_kept=log.num_students,
        questions=log.num_questions,
        concepts=log.num_concepts,
        fractional_rule=config.fractional,
        missing_concept_rule=config.missing_concepts,
        concept_rows=config.concept_rows,
        notes=notes,
        **({"missing_question": 0} | count),
    )
    partial = count["fractional"] if config.fractional == "drop" else 0
    if partial or count["invalid_response"] or report.missing_question or count["short_students"]:
        warnings.warn(str(report), DataWarning, stacklevel=2)
    return log, report


def encode_ids(column: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 [E] from 0 and the sorted ids; text that is all whole numbers becomes int64.

    Raises:
      DataError: a missing id.
    """
    column = np.asarray(column)
    bad = missing_ids(column)
    if bad.any():
        row = int(np.argmax(bad)) + 1
        raise DataError(f"{what} id missing in row {row} ({int(bad.sum())} such rows).")
    if column.dtype.kind not in "iu":
        ids, codes = np.unique(column.astype(str), return_inverse=True)
        if not all(_canonical_int(key) for key in ids.tolist()):
            return codes, ids.astype(object)
        column = ids.astype(np.int64)[codes]
    ids, codes = np.unique(column.astype(np.int64), return_inverse=True)
    return codes, ids


def missing_ids(column: np.ndarray) -> np.ndarray:
    """bool [E]: -1, '', 'nan', 'NA', None and NaN stand for no id."""
    column = np.asarray(column)
    if column.dtype.kind in "iu":
        return column == -1
    if column.dtype.kind == "f":
        return ~np.isfinite(column) | (column == -1)
    blank = {"", "-1", "nan", "na", "none", "null"}
    return np.array([v is None or str(v).strip().lower() in blank for v in column.tolist()], bool)


def compress(log: AnswerLog) -> AnswerLog:
    """The log without the students, questions and concepts that no row has."""
    student, students = _used(log.student, log.student_ids)
    question, questions = _used(log.question, log.question_ids, keep_first=True)
    concept, concepts = _used(log.concepts.values, log.concept_ids, keep_first=True)
    return dataclasses.replace(
        log,
        student=student,
        question=question,
        concepts=Ragged(log.concepts.offsets, concept),
        student_ids=students,
        question_ids=questions,
        concept_ids=concepts,
        fold=None if log.fold is None else log.fold[np.unique(log.student)],
    )


def _check_shape(raw: RawAnswers) -> int:
    total = len(raw.student)
    if total == 0:
        raise DataError(f"{raw.source} holds no answers: it is empty or has only a header.")
    columns = {
        "question": raw.question, "concepts": raw.concepts, "response": raw.response,
        "timestamp": raw.timestamp, "order": raw.order,
    }  # fmt: skip
    for name, column in columns.items():
        if column is not None and len(column) != total:
            raise DataError(f"{raw.source}: {len(column)} {name} values for {total} answers.")
    return total


def _responses(raw: RawAnswers, config: CleaningConfig, count: dict) -> tuple:
    response = np.asarray(raw.response, np.float64)
    invalid = ~((response >= 0) & (response <= 1))  # NaN is neither
    partial = ~invalid & (response > 0) & (response < 1)
    count["invalid_response"], count["fractional"] = int(invalid.sum()), int(partial.sum())
    keep = ~invalid
    if partial.any():
        if config.fractional == "error":
            row = int(np.argmax(partial))
            raise DataError(
                f"{raw.source}: {count['fractional']} responses are between 0 and 1, the first is "
                f"{response[row]:g} in row {row + 1}. Responses are 0 or 1; set "
                "--config.data.clean.fractional to 'drop' or 'threshold'."
            )
        if config.fractional == "drop":
            keep &= ~partial
    return (response >= config.threshold) & ~invalid, keep


def _keys(timestamp, order):
    return [column for column in (timestamp, order) if column is not None]


def _out_of_order(student, timestamp, order) -> int:
    """Rows with a key (time, then order) below that of the student's row before them."""
    keys = _keys(timestamp, order)
    if not keys:
        return 0
    rows = np.argsort(student, kind="stable")
    same = student[rows][1:] == student[rows][:-1]
    below, equal = np.zeros(len(same), bool), np.ones(len(same), bool)
    for key in (k[rows] for k in keys):
        below |= equal & (key[1:] < key[:-1])
        equal &= key[1:] == key[:-1]
    return int((same & below).sum())


def _time_order(student, timestamp, order, rows) -> np.ndarray:
    """Stable: by student, then time, then order, then place in the file."""
    keys = _keys(timestamp, order)
    return np.lexsort([np.arange(len(rows)), *[k[rows] for k in reversed(keys)], student[rows]])


def _concepts(lists: Ragged) -> tuple[Ragged, np.ndarray]:
    """Dense sorted sets from 1, none empty, and the ids; 'unknown' fills the gaps."""
    if len(lists.values):
        codes, ids = encode_ids(lists.values, "concept")
    else:
        codes, ids = np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows = lists.rows
    gap = np.flatnonzero(lists.lengths == 0)
    if len(gap):
        # An id of its own, even where the source calls a concept 'unknown' itself.
        name = UNKNOWN
        texts = set(map(str, ids.tolist()))
        while name in texts:
            name = f"({name})"
        ids = np.array([*map(str, ids.tolist()), name], dtype=object)
        rows = np.concatenate([rows, gap])
        codes = np.concatenate([codes, np.full(len(gap), len(ids) - 1)])
    return sorted_sets(rows, (codes + 1).astype(np.int32), len(lists)), _with_padding(ids)


def _joint_questions(concepts: Ragged, concept_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if (concepts.lengths == 1).all():
        return concepts.values, concept_ids
    sets, codes = np.unique(concepts.padded(), axis=0, return_inverse=True)
    names = ["_".join(str(concept_ids[c]) for c in one if c) for one in sets]
    return codes.reshape(-1) + 1, np.array(["", *names], dtype=object)


def _lengths(log: AnswerLog, config: CleaningConfig, count: dict, source: str) -> AnswerLog:
    answers = np.bincount(log.student, minlength=log.num_students)
    short = (answers > 0) & (answers < config.min_answers)
    count["short_students"], count["short_rows"] = int(short.sum()), int(answers[short].sum())
    count["long_students"] = int((answers > config.max_length).sum())
    log_offsets = log.offsets
    rank = np.arange(len(log)) - log_offsets[log.student]
    cut = (rank >= config.max_length) & ~short[log.student] & (config.long == "first")
    count["cut_rows"] = int(cut.sum())
    keep = ~short[log.student] & ~cut
    if not keep.any():
        raise DataError(
            f"{source}: none of {int((answers > 0).sum())} students has "
            f"{config.min_answers} answers (--config.data.clean.min_answers); the longest has "
            f"{int(answers.max())}."
        )
    return log.take(keep)


def _used(codes: np.ndarray, ids: np.ndarray, keep_first: bool = False) -> tuple:
    used = np.zeros(len(ids), bool)
    used[codes] = True
    used[0] |= keep_first
    return (np.cumsum(used) - 1)[codes].astype(np.int32), ids[used]


def _with_padding(ids: np.ndarray) -> np.ndarray:
    padding = np.array([-1] if ids.dtype.kind == "i" else [""], dtype=ids.dtype)
    return np.concatenate([padding, ids])


def _canonical_int(text: str) -> bool:
    # '007' and '7' are different ids, so only what int() prints back is a number; 64 bits.
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 19 and str(int(text)) == text


def _reasons(count: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in count.items() if value)
