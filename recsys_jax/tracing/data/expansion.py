"""Rows that repeat one answer for each concept of its question, which leak the response.

Such a row comes right after another of the same student, question and response (and time, where
the source has times) and either has the same order number or brings a concept that the answer
does not have yet. A repeat with a concept that is already there is a new attempt. Order numbers
that differ prove nothing: many files just number their rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.tracing.data.log import AnswerLog
from recsys_jax.tracing.data.ragged import Ragged, sorted_sets


def expansion_runs(
    student: np.ndarray,
    question: np.ndarray,
    response: np.ndarray,
    concepts: Ragged,
    timestamp: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """int64 [E], the number of the answer that each row belongs to, from 0, rising.

    Rows are grouped by student and in time order; concepts holds integers. A source without
    question ids has no runs to find: each row is passed as a question of its own concepts.
    """
    keys = [student, question, response] + ([] if timestamp is None else [timestamp])
    same = np.zeros(len(student), bool)
    one = np.zeros(len(student), bool)
    if len(student):
        same[1:] = np.logical_and.reduce([k[1:] == k[:-1] for k in keys])
        if order is not None:
            one[1:] = same[1:] & (order[1:] == order[:-1])
    begins = ~same
    # Only rows after a like one need a look at their concepts: a sixth of the rows at worst seen.
    seen: set[int] = set()
    last = -2
    for row in np.flatnonzero(same):
        if last != row - 1:
            seen = set(concepts[row - 1].tolist())
        own = set(concepts[row].tolist())
        if not one[row] and (own & seen or not own):
            begins[row] = True
            seen = own
        else:
            seen = seen | own
        last = row
    return np.cumsum(begins) - 1


def count_expanded(log: AnswerLog) -> int:
    """Rows that repeat the answer before them for a further concept; 0 without question ids."""
    if not log.has_questions:
        return 0
    return len(log) - _num_runs(_runs(log))


def collapse(log: AnswerLog) -> tuple[AnswerLog, int]:
    """The log with one row per answer and the united concept sets, and how many rows went."""
    if not log.has_questions:
        return log, 0
    run = _runs(log)
    removed = len(log) - _num_runs(run)
    united = sorted_sets(run[log.concepts.rows], log.concepts.values, _num_runs(run))
    first = np.flatnonzero(np.diff(run, prepend=-1))
    kept = dataclasses.replace(log.take(first), concepts=united, concept_expanded=False)
    return kept, removed


def require_collapsed(log: AnswerLog, allow_concept_expanded: bool = False) -> None:
    """Refuses to evaluate on rows that repeat an answer, unless that is asked for by name.

    Raises:
      DataError: the log has such rows and allow_concept_expanded is False.
    """
    if allow_concept_expanded:
        return
    count = count_expanded(log)
    if count:
        raise DataError(
            f"{count} of {len(log)} rows ({count / len(log):.1%}) of {log.name} repeat the answer "
            "before them for another concept of the same question: a model that copies the last "
            "response is right there, so the evaluation would leak. Collapse them "
            "(--config.data.clean.concept_rows=collapse), or ask for the leaky evaluation by name "
            "with allow_concept_expanded=True."
        )


def _runs(log: AnswerLog) -> np.ndarray:
    return expansion_runs(
        log.student, log.question, log.response, log.concepts, log.timestamp, log.order
    )


def _num_runs(run: np.ndarray) -> int:
    return int(run[-1]) + 1 if len(run) else 0
