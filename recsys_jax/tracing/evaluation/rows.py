"""Predictions as rows: one per scored step, a few bytes each, gathered batch by batch.

Letters: N rows, S students, B students of a batch, T steps.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_COLUMNS = {
    "student": np.int32,
    "step": np.int32,
    "question": np.int32,
    "probability": np.float32,
    "response": np.int8,
    "horizon": np.int32,
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Scored predictions, 21 bytes a row; every column is [N].

    student: int32, the unit of resampling. step: int32, from 0, place in the sequence.
    question: int32. probability: float32, predicted chance of a right answer. response: int8, the
    true answer. horizon: int32, from 1: 1 is the first step after the observed prefix.
    """

    student: np.ndarray
    step: np.ndarray
    question: np.ndarray
    probability: np.ndarray
    response: np.ndarray
    horizon: np.ndarray

    def __len__(self) -> int:
        return len(self.student)

    def where(self, keep) -> Rows:
        """The rows that the bool array [N] keeps, or those at int positions."""
        return Rows(*(getattr(self, name)[keep] for name in _COLUMNS))

    def bucket(self, first: int, last: int) -> Rows:
        """The rows whose horizon lies in first..last, both included."""
        return self.where((self.horizon >= first) & (self.horizon <= last))

    def fingerprint(self) -> int:
        """A number that is equal for the same students, steps, questions and true answers.

        The order of rows and the predictions do not enter: paired comparisons ask for equality.
        """
        total = np.zeros(len(self), np.uint64)
        for name in ("student", "step", "question", "response", "horizon"):
            column = getattr(self, name).astype(np.int64).astype(np.uint64)
            total = (total ^ (column + np.uint64(0x9E3779B97F4A7C15))) * np.uint64(
                0xBF58476D1CE4E5B9
            )
            total ^= total >> np.uint64(29)
        return int(total.sum(dtype=np.uint64))


class RowAccumulator:
    """Collects the scored steps of batches; holds rows only, never whole batches."""

    def __init__(self):
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}

    def add(self, *, students, questions, responses, probabilities, scored, horizon) -> None:
        """Adds the scored steps of one batch.

        Args:
          students: int [B]. questions, responses: int [B, T]. probabilities: float [B, T].
          scored: bool [B, T]. horizon: int [B, T].
        Raises:
          ValueError: shapes that differ, a scored probability outside [0, 1] or not finite, a
            scored response other than 0 or 1.
        """
        scored = np.asarray(scored, bool)
        students = np.asarray(students)
        if students.shape != scored.shape[:1]:
            raise ValueError(
                f"students has shape {students.shape}; needed is one number per student of the "
                f"batch, {scored.shape[:1]}."
            )
        columns = {
            "student": np.broadcast_to(students[:, None], scored.shape),
            "step": np.broadcast_to(np.arange(scored.shape[1]), scored.shape),
            "question": np.asarray(questions),
            "probability": np.asarray(probabilities),
            "response": np.asarray(responses),
            "horizon": np.asarray(horizon),
        }
        for name, column in columns.items():
            if column.shape != scored.shape:
                raise ValueError(f"{name} has shape {column.shape}; needed is {scored.shape}.")
        chosen = {name: column[scored] for name, column in columns.items()}
        p, r = chosen["probability"], chosen["response"]
        if not ((p >= 0) & (p <= 1)).all():
            bad = p[~((p >= 0) & (p <= 1))]
            raise ValueError(
                f"{bad.size} predictions are no probabilities, the first is {bad[0]}; allowed is "
                "0 to 1. A model that diverged gives NaN: look at its training loss."
            )
        if not ((r == 0) | (r == 1)).all():
            bad = r[(r != 0) & (r != 1)]
            raise ValueError(
                f"A true response is {bad[0]}; allowed are 0 and 1. Round fractional credit when "
                "the data are read."
            )
        for name, dtype in _COLUMNS.items():
            self._parts[name].append(chosen[name].astype(dtype))

    def finish(self) -> Rows:
        """All rows so far, in the order they came."""
        columns = []
        for name, dtype in _COLUMNS.items():  # Column by column: one copy of one column at a time.
            parts = self._parts[name]
            column = np.concatenate(parts) if parts else np.zeros(0, dtype)
            self._parts[name] = [column]
            columns.append(column)
        return Rows(*columns)
