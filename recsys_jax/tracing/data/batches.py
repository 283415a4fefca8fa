"""Sequences of answers as padded `Batch`es, for training and for evaluation.

B sequences, T steps, C concepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.sequences import flat_ranges
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.data.expansion import require_collapsed
from recsys_jax.tracing.data.log import AnswerLog
from recsys_jax.tracing.data.splits import Sequences

if TYPE_CHECKING:
    import grain


class EvaluationBatch(NamedTuple):
    """A batch and whose answers it holds; rows that only fill up have student -1.

    students: int32 (B,), dense. rows: int64 (B, T), row of the log of each step, -1 in padding.
    """

    batch: Batch
    students: np.ndarray
    rows: np.ndarray


def make_batch(
    log: AnswerLog, sequences: Sequences, index: np.ndarray, num_rows: int, length: int
) -> EvaluationBatch:
    """The sequences at int [K] `index`, in that order, padded to (num_rows, length).

    Raises:
      DataError: a sequence longer than `length`.
    """
    begin, lengths = sequences.begin[index], sequences.lengths[index]
    if len(index) and lengths.max() > length:
        raise DataError(
            f"A sequence of {int(lengths.max())} answers does not fit {length} steps; raise the "
            "length or set --config.data.clean.long to 'first' or 'chop'."
        )
    cells = np.repeat(np.arange(len(index)) * length, lengths)
    cells += flat_ranges(np.zeros(len(index), np.int64), lengths)
    source = flat_ranges(begin, lengths)

    def fill(values: np.ndarray, dtype, blank=0) -> np.ndarray:
        table = np.full((num_rows * length, *values.shape[1:]), blank, dtype)
        table[cells] = values
        return table.reshape(num_rows, length, *values.shape[1:])

    batch = Batch(
        questions=fill(log.question[source], np.int32),
        concepts=fill(log.concepts.take(source).padded(log.max_concepts), np.int32),
        responses=fill(log.response[source], np.int32),
        mask=fill(np.ones(len(source), bool), bool, False),
    )
    students = np.full(num_rows, -1, np.int32)
    students[: len(index)] = sequences.student[index]
    return EvaluationBatch(batch, students, fill(source, np.int64, -1))


def batches(
    log: AnswerLog,
    sequences: Sequences,
    *,
    batch_size: int,
    length: int | None = None,
    buckets: Sequence[int] = (),
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 4,
) -> grain.IterDataset:
    """Endless training batches: every sequence once per epoch, in a new order each epoch.

    All batches have `length` steps (None takes the longest sequence); with `buckets`, a batch
    holds sequences of one bucket and has that bucket's length, so that little of it is padding.
    The last batch (of each bucket) is filled up with empty rows. Epoch e depends on the seed and
    e only; a process makes its own contiguous rows of each batch.

    Args:
      buckets: rising lengths; the last one must hold the longest sequence.
      prefetch: batches made ahead by a background thread, 0 for none.

    Returns:
      grain.IterDataset of Batch with NumPy arrays; iterators have exact get_state / set_state.

    Raises:
      DataError: no sequences, sizes below one, buckets or a length that do not hold all.
    """
    from recsys_jax.data import batches as engine

    if not len(sequences):
        raise DataError("There are no training sequences; see --config.data.split.*.")
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}.")
    edges = _edges(sequences, length, buckets)
    mine = engine.ProcessRows.of(batch_size, process_index, process_count)
    bucket = np.searchsorted(edges, sequences.lengths)

    def make_epoch(epoch: int) -> engine.Epoch:
        rng = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
        order = rng.permutation(len(sequences))
        plan: list[tuple[int, np.ndarray]] = []
        for number, edge in enumerate(edges.tolist()):
            members = order[bucket[order] == number]
            starts = range(0, len(members), batch_size)
            plan += [(edge, members[start : start + batch_size]) for start in starts]
        turn = rng.permutation(len(plan)) if len(edges) > 1 else np.arange(len(plan))

        def make(number: int) -> Batch:
            steps, members = plan[turn[number]]
            own = members[mine.start : mine.stop]
            return make_batch(log, sequences, own, mine.stop - mine.start, steps).batch

        return engine.Epoch(len(plan), make)

    return engine.prefetched(engine.EpochIterDataset(make_epoch), prefetch)


def evaluation_batches(
    log: AnswerLog,
    sequences: Sequences,
    *,
    batch_size: int,
    length: int | None = None,
    buckets: Sequence[int] = (),
    allow_concept_expanded: bool = False,
) -> Iterator[EvaluationBatch]:
    """Every sequence once, in order, with its student and rows; the last batch is filled up.

    Args:
      length: steps of every batch; None takes the longest sequence.
      buckets: rising lengths in its place; sequences come bucket by bucket, as in `batches`.
      allow_concept_expanded: evaluate although rows repeat an answer for each of its concepts,
        which leaks responses.

    Raises:
      DataError: the log has such rows and they were not asked for; batch_size below 1; buckets or
        a length that do not hold all.
    """
    require_collapsed(log, allow_concept_expanded)
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}.")
    edges = _edges(sequences, length, buckets)
    bucket = np.searchsorted(edges, sequences.lengths)

    def generate() -> Iterator[EvaluationBatch]:
        for number, edge in enumerate(edges.tolist()):
            members = np.flatnonzero(bucket == number)
            for start in range(0, len(members), batch_size):
                index = members[start : start + batch_size]
                yield make_batch(log, sequences, index, batch_size, edge)

    return generate()


def _edges(sequences: Sequences, length: int | None, buckets: Sequence[int]) -> np.ndarray:
    """The lengths of batches, rising."""
    if buckets and length is not None:
        raise DataError("Give either length or buckets, not both.")
    longest = int(sequences.lengths.max(initial=1))
    edges = np.array(list(buckets) or [longest if length is None else length])
    if (np.diff(edges) <= 0).any() or edges[0] < 1 or edges[-1] < longest:
        raise DataError(
            f"Lengths {edges.tolist()} must be positive, rising, and the last at least {longest}, "
            "the longest sequence."
        )
    return edges
