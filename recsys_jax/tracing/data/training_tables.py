"""Tables that may be made from the training students only: difficulty, successors, candidates.

Q questions.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.tracing.data.log import AnswerLog
from recsys_jax.tracing.data.ragged import Ragged
from recsys_jax.tracing.data.splits import Sequences


@dataclasses.dataclass(frozen=True)
class TrainingTables:
    """What the training sequences say about questions.

    Attributes:
      count, correct: int64 [Q + 1], answers and right answers of each question.
      rate: float64 [Q + 1], (correct + s * m) / (count + s) with the overall mean m and the
        pseudo-count s; the mean m where a question was never asked.
      order: int32 [K], the questions that were asked, from the hardest (lowest rate) to the
        easiest; ties by dense id.
      successors: Ragged of Q + 1, the questions that came right after each, as often as they
        did: a uniform draw from a list follows the empirical transitions. Empty for questions
        without a successor (draw from `order` then).
      easier, harder: Ragged of Q + 1, asked questions with a strictly higher or lower rate, the
        nearest first. Empty for questions that were not asked, and at the ends.
    """

    count: np.ndarray
    correct: np.ndarray
    rate: np.ndarray
    order: np.ndarray
    successors: Ragged
    easier: Ragged
    harder: Ragged


def training_tables(
    log: AnswerLog, sequences: Sequences, *, smoothing: float = 5.0, num_candidates: int = 32
) -> TrainingTables:
    """Tables from the rows of `sequences` and nothing else.

    smoothing: the pseudo-count s. num_candidates: the most that a list of candidates holds (the
    released AdvKT tables, which would show its number, were never published).

    Raises:
      DataError: no sequences, a negative smoothing, num_candidates below 1.
    """
    if not len(sequences):
        raise DataError("There are no training sequences to make tables from.")
    if smoothing < 0 or num_candidates < 1:
        raise DataError(
            f"smoothing={smoothing} must be >= 0 and num_candidates={num_candidates} at least 1."
        )
    size = log.num_questions + 1
    used = np.zeros(len(log) + 1, np.int64)
    np.add.at(used, sequences.begin, 1)
    np.add.at(used, sequences.end, -1)
    used = np.cumsum(used)[:-1] > 0
    first = np.zeros(len(log), bool)
    first[sequences.begin] = True

    question, response = log.question[used], log.response[used]
    count = np.bincount(question, minlength=size)
    correct = np.bincount(question, weights=response, minlength=size).astype(np.int64)
    mean = float(response.mean())
    rate = np.full(size, mean)
    asked = np.flatnonzero(count)
    rate[asked] = (correct[asked] + smoothing * mean) / (count[asked] + smoothing)
    order = asked[np.lexsort([asked, rate[asked]])].astype(np.int32)

    follows = np.flatnonzero(used & ~first)
    before, after = log.question[follows - 1], log.question[follows]
    successors = Ragged.from_lengths(
        np.bincount(before, minlength=size), after[np.lexsort([after, before])]
    )
    easier, harder = _candidates(order, rate, size, num_candidates)
    return TrainingTables(count, correct, rate, order, successors, easier, harder)


def _candidates(
    order: np.ndarray, rate: np.ndarray, size: int, width: int
) -> tuple[Ragged, Ragged]:
    rates = rate[order]
    above = np.searchsorted(rates, rates, side="right")  # place of the next easier question
    below = np.searchsorted(rates, rates, side="left")  # one after the next harder one
    place = np.full(size, -1)
    place[order] = np.arange(len(order))
    asked = place >= 0
    num_easier, num_harder = np.zeros(size, np.int64), np.zeros(size, np.int64)
    num_easier[asked] = np.minimum(width, len(order) - above[place[asked]])
    num_harder[asked] = np.minimum(width, below[place[asked]])

    def lists(lengths, start, step):
        at = np.repeat(np.arange(size), lengths)
        rank = np.arange(len(at)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Ragged.from_lengths(lengths, order[start[place[at]] + step * rank])

    return lists(num_easier, above, 1), lists(num_harder, below - 1, -1)
