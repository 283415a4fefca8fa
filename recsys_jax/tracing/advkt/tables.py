"""What the adversarial training knows about questions, from training data alone.

Lists of different lengths are stored as offsets and items; a table of every question against
every other would not fit for tens of thousands of questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from recsys_jax.tracing.batch import Batch


class Ragged(NamedTuple):
    """Lists of int32: row i is items[offsets[i] : offsets[i + 1]]."""

    offsets: jax.Array
    items: jax.Array


class QuestionTables(NamedTuple):
    """By question id, 0 (padding) included, P questions.

    concepts: int32 (P + 1, C). starts: int32 (S,), the questions of the training data.
    successors: what followed each question, once per time it did. easier, harder: candidates of
    `replace_questions`.
    """

    concepts: jax.Array
    starts: jax.Array
    successors: Ragged
    easier: Ragged
    harder: Ragged


def ragged(lists: Sequence[Sequence[int]]) -> Ragged:
    """Lists as one pair of NumPy arrays."""
    counts = np.array([len(row) for row in lists], np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    items = np.concatenate([np.asarray(row, np.int32) for row in lists] + [np.zeros(0, np.int32)])
    return Ragged(offsets, items.astype(np.int32))


def build_tables(
    batches: Iterable[Batch],
    num_questions: int,
    *,
    neighbours: int = 10,
    smoothing: float = 5.0,
) -> QuestionTables:
    """Tables from the training data, as NumPy arrays.

    Args:
      batches: training students, each once; NumPy or JAX arrays of one C.
      num_questions: P.
      neighbours: a question's easier (harder) candidates are the next ones in order of difficulty,
        at most this many (after CL4KT's neighbouring skill; the released lists are unknown).
      smoothing: answers at the mean rate that are added to each question's own before the
        share of right ones ranks it.

    Raises:
      ValueError: a question id above num_questions, or no answers at all.
    """
    right = np.zeros(num_questions + 1)
    asked = np.zeros(num_questions + 1)
    pairs, concepts = [], None
    for batch in batches:
        questions, sets, responses, mask = (np.asarray(x) for x in batch)
        if concepts is None:
            concepts = np.zeros((num_questions + 1, sets.shape[-1]), np.int32)
        seen = questions[mask]
        if seen.size and (seen.max() > num_questions or seen.min() < 1):
            bad = seen.max() if seen.max() > num_questions else seen.min()
            raise ValueError(
                f"question {bad} is not in 1 ... num_questions={num_questions}; raise "
                "num_questions, or number the questions anew."
            )
        concepts[seen] = sets[mask]
        np.add.at(asked, seen, 1)
        np.add.at(right, seen, responses[mask])
        both = mask[:, 1:] & mask[:, :-1]
        pairs.append(np.stack([questions[:, :-1][both], questions[:, 1:][both]], -1))
    if not asked.sum():
        raise ValueError("The training data holds no answers; tables need at least one.")
    mean = right.sum() / asked.sum()
    rate = (right + smoothing * mean) / (asked + smoothing)
    starts = np.flatnonzero(asked).astype(np.int32)
    easier, harder = _neighbours(starts, rate, num_questions, neighbours)
    return QuestionTables(
        concepts, starts, _by_first(np.concatenate(pairs), num_questions), easier, harder
    )


def _by_first(pairs: np.ndarray, num_questions: int) -> Ragged:
    counts = np.bincount(pairs[:, 0], minlength=num_questions + 1)
    order = np.argsort(pairs[:, 0], kind="stable")
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Ragged(offsets, pairs[order, 1].astype(np.int32))


def _neighbours(starts, rate, num_questions, neighbours) -> tuple[Ragged, Ragged]:
    """Questions with a strictly higher (lower) rate, nearest in rank."""
    ranked = starts[np.argsort(rate[starts], kind="stable")]
    rates = rate[ranked]
    # Questions of equal rate are neither easier nor harder than one another.
    low = np.searchsorted(rates, rates, side="left")
    high = np.searchsorted(rates, rates, side="right")
    easier: list = [[]] * (num_questions + 1)
    harder: list = [[]] * (num_questions + 1)
    for place, question in enumerate(ranked):
        easier[question] = ranked[high[place] : high[place] + neighbours]
        harder[question] = ranked[max(low[place] - neighbours, 0) : low[place]]
    return ragged(easier), ragged(harder)
