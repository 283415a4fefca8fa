"""Gathers answers student by student into a RawAnswers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.tracing.data.clean import missing_ids
from recsys_jax.tracing.data.log import RawAnswers
from recsys_jax.tracing.data.ragged import Ragged


class Collector:
    """Appends whole students, then `finish`es.

    source: file or folder for messages.
    concept_separator: what divides the concepts of one answer, such as '_' in '12_40'.
    """

    def __init__(self, source: str, concept_separator: str = "_"):
        self.source = source
        self._separator = concept_separator
        self._student: list[str] = []
        self._lengths: list[int] = []
        self._columns: dict[str, list] = {
            name: [] for name in ("question", "concepts", "response", "timestamp", "order")
        }
        self.fold: dict[str, int] = {}
        self.notes: tuple[str, ...] = ()

    def add(
        self,
        student: str,
        response: Sequence[float],
        *,
        question: Sequence[str] | None = None,
        concepts: Sequence[str] | None = None,
        timestamp: Sequence[int] | None = None,
        order: Sequence[int] | None = None,
        fold: int | None = None,
        where: str = "",
    ) -> None:
        """One student's answers in order; a student may come in several parts.

        Raises:
          DataError: columns of different lengths; a student in two folds.
        """
        columns = {
            "question": question, "concepts": concepts, "response": response,
            "timestamp": timestamp, "order": order,
        }  # fmt: skip
        for name, column in columns.items():
            if column is not None and len(column) != len(response):
                raise DataError(
                    f"{where or self.source}: {len(column)} {name} values but {len(response)} "
                    "responses; the lines of a student must be of the same length."
                )
            if column is not None:
                self._columns[name].extend(column)
        self._student.append(student)
        self._lengths.append(len(response))
        if fold is not None and self.fold.setdefault(student, fold) != fold:
            raise DataError(
                f"{where or self.source}: student {student} is in fold {self.fold[student]} and in "
                f"fold {fold}; a student belongs to one part only."
            )

    def finish(self, **about: str) -> RawAnswers:
        """about: name, licence, citation."""
        total = sum(self._lengths)

        def column(name: str, dtype):
            values = self._columns[name]
            if values and len(values) != total:
                raise DataError(
                    f"{self.source}: only {len(values)} of {total} answers have a {name}; it must "
                    "be there for all students or for none."
                )
            return np.array(values, dtype=dtype) if values else None

        concepts = column("concepts", object)
        return RawAnswers(
            student=np.repeat(np.array(self._student, object), self._lengths),
            question=column("question", object),
            concepts=split_concepts(concepts, total, self._separator),
            response=np.array(self._columns["response"], np.float64),
            timestamp=column("timestamp", np.int64),
            order=column("order", np.int64),
            fold=self.fold,
            source=self.source,
            notes=self.notes,
            **about,
        )


def split_concepts(column: np.ndarray | None, total: int, separator: str = "_") -> Ragged:
    """'12_40' -> ['12', '40'] for each of [E] texts; missing ids give an empty list."""
    if column is None:
        return Ragged(np.zeros(total + 1, np.int64), np.zeros(0, object))
    texts, codes = np.unique(column.astype(str), return_inverse=True)
    lists = [[p.strip() for p in t.split(separator)] if separator else [t] for t in texts.tolist()]
    distinct = Ragged.from_lists(lists, object)
    blank = missing_ids(distinct.values)
    lengths = np.bincount(distinct.rows[~blank], minlength=len(distinct))
    return Ragged.from_lengths(lengths, distinct.values[~blank]).take(codes)
