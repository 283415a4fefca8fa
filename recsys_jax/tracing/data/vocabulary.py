"""Original ids of questions and concepts, and which concepts a question has."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from recsys_jax.data.errors import DataError, suggestion
from recsys_jax.tracing.data.log import AnswerLog
from recsys_jax.tracing.data.ragged import Ragged, sorted_sets


@dataclasses.dataclass(frozen=True)
class TracingVocabulary:
    """What a trained model needs to read questions: ids and the table of concepts.

    Attributes:
      question_ids: [Q + 1] original ids, entry 0 padding.
      concept_ids: [C + 1] original ids, entry 0 padding.
      question_concepts: Ragged of Q + 1 sorted sets, int32 1..C; the list of question 0 is empty.
    """

    question_ids: np.ndarray
    concept_ids: np.ndarray
    question_concepts: Ragged

    @classmethod
    def of(cls, log: AnswerLog) -> TracingVocabulary:
        """Concepts of a question are all that the log names with it, in any part of it."""
        rows = log.question[log.concepts.rows]
        table = sorted_sets(rows, log.concepts.values, log.num_questions + 1)
        return cls(log.question_ids, log.concept_ids, table)

    @functools.cached_property
    def _question(self) -> dict[str, int]:
        return {str(key): dense for dense, key in enumerate(self.question_ids.tolist()) if dense}

    def questions(self, ids: Iterable, unknown: str = "error") -> np.ndarray:
        """int32 dense ids of original ids; 5 and '5' are the same id.

        unknown: 'error', or 'zero' to give 0 to questions that the log does not have; models know
        nothing of question 0, nor of its concepts.

        Raises:
          DataError: an unknown question and unknown='error'; unknown is neither of the two.
        """
        if unknown not in ("error", "zero"):
            raise DataError(f"unknown={unknown!r} is not allowed; allowed are 'error' and 'zero'.")
        ids = list(ids)
        dense = np.array([self._question.get(str(key), 0) for key in ids], np.int32)
        if unknown == "error" and len(ids) and not dense.all():
            missing = [key for key, value in zip(ids, dense, strict=True) if not value]
            raise DataError(
                f"{len(missing)} of {len(ids)} questions are unknown, the first is "
                f"{missing[0]!r}; the data has {len(self._question)} questions."
                f"{suggestion(str(missing[0]), self._question)} Leave them out, or pass "
                "unknown='zero' to predict them without any knowledge of the question."
            )
        return dense

    def concepts(self, questions: np.ndarray) -> np.ndarray:
        """int32 [..., C_max] concept sets of dense questions [...], filled up with 0."""
        return self._padded[np.asarray(questions)]

    @functools.cached_property
    def _padded(self) -> np.ndarray:
        return self.question_concepts.padded().astype(np.int32)
