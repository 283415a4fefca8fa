"""The rules of cleaning and the count of what they did."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from recsys_jax.data.errors import DataError


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """What is done with answers that cannot be used as they are.

    Attributes:
      fractional: responses strictly between 0 and 1 (partial credit): 'drop' them, make them
        'threshold' (1 from `threshold` on, else 0), or stop with an 'error'. Responses outside
        [0, 1] or missing are always dropped.
      threshold: least credit that counts as right.
      missing_concepts: answers without a concept get the concept 'unknown' of their own
        ('unknown'), are dropped ('drop') or stop the reading ('error').
      concept_rows: 'collapse' rows that repeat an answer for each concept of its question, or
        'keep' them (evaluation then has to be asked for by name).
      min_answers: students with fewer answers are dropped (after all else; spec: 10).
      max_length: answers of a sequence at most.
      long: students with more: 'first' keeps the first max_length answers, 'chop' cuts into
        windows of max_length when sequences are made, 'keep' leaves them.
      min_window: windows of 'chop' with fewer answers are left out.
    """

    fractional: Literal["drop", "threshold", "error"] = "drop"
    threshold: float = 0.5
    missing_concepts: Literal["unknown", "drop", "error"] = "unknown"
    concept_rows: Literal["collapse", "keep"] = "collapse"
    min_answers: int = 10
    max_length: int = 200
    long: Literal["first", "chop", "keep"] = "first"
    min_window: int = 2

    def __post_init__(self):
        allowed = {
            "fractional": ("drop", "threshold", "error"),
            "missing_concepts": ("unknown", "drop", "error"),
            "concept_rows": ("collapse", "keep"),
            "long": ("first", "chop", "keep"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise DataError(
                    f"data.clean.{name}={getattr(self, name)!r} is not allowed; "
                    f"allowed are {', '.join(values)}."
                )
        for name in ("min_answers", "max_length", "min_window"):
            if getattr(self, name) < 1:
                raise DataError(f"data.clean.{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.threshold <= 1:
            raise DataError(f"data.clean.threshold must be in (0, 1], got {self.threshold}.")


@dataclasses.dataclass(frozen=True)
class CleaningReport:
    """Counts of what was read, changed and dropped; rows unless the name says students.

    Attributes:
      source: the file.
      rows_read, rows_kept, students_read, students_kept, questions, concepts: sizes.
      fractional: responses strictly between 0 and 1; dropped or thresholded as `fractional_rule`.
      invalid_response: missing or outside [0, 1]; dropped.
      missing_question: answers without a question id; dropped.
      missing_concept: answers without a concept; treated as `missing_concept_rule`.
      out_of_order: rows earlier than the row before them of the same student; sorted.
      concept_expanded: rows that repeat an answer for another concept; collapsed or kept as
        `concept_rows`. concept_expanded_share: their share of the rows that were left then.
      short_students, short_rows: students below min_answers, and their rows; dropped.
      long_students, cut_rows: students above max_length, and rows cut off them ('first').
      notes: what the reader had to say.
    """

    source: str
    rows_read: int
    rows_kept: int
    students_read: int
    students_kept: int
    questions: int
    concepts: int
    fractional: int
    fractional_rule: str
    invalid_response: int
    missing_question: int
    missing_concept: int
    missing_concept_rule: str
    out_of_order: int
    concept_expanded: int
    concept_expanded_share: float
    concept_rows: str
    short_students: int
    short_rows: int
    long_students: int
    cut_rows: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for logs and files."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {self.rows_kept} of {self.rows_read} rows, {self.students_kept} of "
            f"{self.students_read} students, {self.questions} questions, {self.concepts} concepts."
        ]
        share = f"{self.concept_expanded_share:.2%}"
        texts = {
            "fractional": f"responses between 0 and 1 (rule: {self.fractional_rule})",
            "invalid_response": "responses missing or outside [0, 1] dropped",
            "missing_question": "answers without a question dropped",
            "missing_concept": f"answers without a concept (rule: {self.missing_concept_rule})",
            "out_of_order": "rows out of time order, sorted",
            "concept_expanded": f"rows ({share}) repeat an answer for another concept "
            f"(rule: {self.concept_rows})",
            "short_students": f"students with too few answers dropped ({self.short_rows} rows)",
            "cut_rows": f"rows cut off {self.long_students} long students",
        }
        lines += [f"{n} {text}." for key, text in texts.items() if (n := getattr(self, key))]
        return "\n".join([*lines, *self.notes])
