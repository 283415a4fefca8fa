"""The one form every log of answers takes in memory, whatever file it came from.

E answers, S students, Q questions, C concepts. Dense ids: students 0..S-1, questions 1..Q,
concepts 1..C; question 0 and concept 0 are padding.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys_jax.tracing.data.ragged import Ragged

TEST_FOLD = -1  # pyKT's mark of the test part


@dataclasses.dataclass(frozen=True)
class RawAnswers:
    """What a reader found, in file order and unchecked; `clean` turns it into an AnswerLog.

    Attributes:
      student: [E] original ids, int64 or object array of str.
      question: [E] original ids or None where the source knows concepts only; -1, '' or None
        stand for a missing id.
      concepts: Ragged of E lists of original ids; an empty list means none known.
      response: float64 [E]; 1 right, 0 wrong, anything else is for `clean` to judge.
      timestamp: int64 [E] or None.
      order: int64 [E] or None; the source's own number of an answer: rows of one student with
        the same number and question are one answer, and answers go in its order.
      fold: original student id -> int, the source's own division (-1 is its test part); empty
        when it has none.
      source: file name for messages.
      notes: what was found or left out while reading, one sentence each.
    """

    student: np.ndarray
    question: np.ndarray | None
    concepts: Ragged
    response: np.ndarray
    timestamp: np.ndarray | None = None
    order: np.ndarray | None = None
    fold: dict = dataclasses.field(default_factory=dict)
    source: str = "data"
    name: str = "data"
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class AnswerLog:
    """Answers grouped by student and in time order; one row is one question with its concepts.

    Attributes:
      student: int32 [E], never falling.
      question: int32 [E], 1..Q.
      concepts: Ragged of E sorted sets, int32, 1..C; none is empty.
      response: int8 [E], 1 right, 0 wrong.
      timestamp: int64 [E] in the source's unit (after `time_scale`), or None.
      order: int64 [E], the source's number of the answer, or None.
      row: int64 [E], the source row that the answer came from (the first one, if collapsed).
      student_ids: [S] original ids (int64 or object array of str).
      question_ids: [Q + 1] original ids, entry 0 for padding (-1 or '').
      concept_ids: [C + 1] likewise.
      fold: int32 [S], the source's own division (-1 is test), or None.
      has_questions: False when the source knows concepts only; each distinct set of concepts
        then stands as a question.
      concept_expanded: True when rows of one answer, one per concept, were left as they are.
    """

    student: np.ndarray
    question: np.ndarray
    concepts: Ragged
    response: np.ndarray
    row: np.ndarray
    student_ids: np.ndarray
    question_ids: np.ndarray
    concept_ids: np.ndarray
    timestamp: np.ndarray | None = None
    order: np.ndarray | None = None
    fold: np.ndarray | None = None
    has_questions: bool = True
    concept_expanded: bool = False
    name: str = "data"
    licence: str = ""
    citation: str = ""

    def __len__(self) -> int:
        return len(self.student)

    @property
    def num_students(self) -> int:
        return len(self.student_ids)

    @property
    def num_questions(self) -> int:
        """Q, without padding."""
        return len(self.question_ids) - 1

    @property
    def num_concepts(self) -> int:
        """C, without padding."""
        return len(self.concept_ids) - 1

    @property
    def max_concepts(self) -> int:
        """Concepts of one row at most (at least 1)."""
        return max(1, int(self.concepts.lengths.max(initial=0)))

    @property
    def offsets(self) -> np.ndarray:
        """int64 [S + 1]: student s has the rows offsets[s]..offsets[s + 1] - 1."""
        counts = np.bincount(self.student, minlength=self.num_students)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def take(self, rows: np.ndarray) -> AnswerLog:
        """The same vocabularies with only the rows at bool [E] or rising int [M] `rows`."""

        def pick(column):
            return None if column is None else column[rows]

        return dataclasses.replace(
            self,
            student=self.student[rows],
            question=self.question[rows],
            concepts=self.concepts.take(rows),
            response=self.response[rows],
            row=self.row[rows],
            timestamp=pick(self.timestamp),
            order=pick(self.order),
        )

    def of_students(self, students: np.ndarray) -> AnswerLog:
        """The same vocabularies with only the rows of int [K] `students`."""
        mask = np.zeros(self.num_students, bool)
        mask[students] = True
        return self.take(mask[self.student])
