"""Training batches for grain: shuffled per epoch, resumable at any batch, the same for any
number of processes.

R rows, N columns, K batches per dispatch. The batch dict is described in docs/data.md.
"""

from __future__ import annotations

import atexit
import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.sequences import SequenceSource, UserSequences
from recsys_jax.data.splits import Examples, training_interactions
from recsys_jax.data.windows import fill_batch, pack_epoch, packed_rows

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One shuffled pass: the number of batches and how to make this process's part of one."""

    num_batches: int
    batch: Callable[[int], Batch]


class EpochIterDataset(grain.IterDataset):
    """Endless stream over epochs; its state is (epoch, batch), nothing else.

    Attributes:
      make_epoch: epoch number -> Epoch; must depend on nothing but the number.
      dispatch: batches stacked per element; 1 leaves the batch as it is.
    """

    def __init__(self, make_epoch: Callable[[int], Epoch], dispatch: int = 1):
        super().__init__()
        self.make_epoch = make_epoch
        self.dispatch = dispatch

    def __iter__(self) -> grain.DatasetIterator:
        return _EpochIterator(self)


class _EpochIterator(grain.DatasetIterator):
    def __init__(self, dataset: EpochIterDataset):
        super().__init__()
        self._dataset = dataset
        self._epoch, self._batch = 0, 0
        self._plan: tuple[int, Epoch] | None = None

    def _one(self) -> Batch:
        if self._plan is None or self._plan[0] != self._epoch:
            self._plan = (self._epoch, self._dataset.make_epoch(self._epoch))
        batch = self._plan[1].batch(self._batch)
        self._batch += 1
        if self._batch >= self._plan[1].num_batches:
            self._epoch, self._batch = self._epoch + 1, 0
        return batch

    def __next__(self) -> Batch:
        dispatch = self._dataset.dispatch
        if dispatch == 1:
            return self._one()
        batches = [self._one() for _ in range(dispatch)]
        return {name: np.stack([b[name] for b in batches]) for name in batches[0]}

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "batch": self._batch}

    def set_state(self, state: dict[str, Any]) -> None:
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])


@dataclasses.dataclass(frozen=True)
class ProcessRows:
    """The rows of a global batch that one process makes."""

    start: int
    stop: int

    @classmethod
    def of(cls, rows: int, process_index: int, process_count: int) -> ProcessRows:
        if not 0 <= process_index < process_count:
            raise DataError(f"process_index {process_index} is not in 0..{process_count - 1}.")
        if rows % process_count:
            raise DataError(
                f"A batch of {rows} rows cannot be divided among {process_count} processes; set "
                "--config.batch.batch_size to a multiple of it."
            )
        size = rows // process_count
        return cls(process_index * size, (process_index + 1) * size)


def training_dataset(
    source: SequenceSource,
    examples: Examples,
    *,
    batch_size: int,
    max_len: int,
    packed: bool = False,
    row_length: int | None = None,
    rows: int | None = None,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    dispatch: int = 1,
    prefetch: int = 4,
) -> grain.IterDataset:
    """Endless training batches, each example once per epoch, reshuffled every epoch.

    Padded: one example per row, R = batch_size, N = max_len. Packed: windows are put first-fit
    into R rows of N = row_length cells, with R chosen so that about batch_size examples fit. The
    last batch of an epoch is filled up with empty rows. A global batch does not depend on
    process_count; each process makes its own contiguous rows of it.

    Args:
      batch_size: examples per global batch (packed: on average).
      max_len: inputs per example at most.
      row_length: columns of a packed row, >= the longest window; None takes max_len.
      rows: rows of a packed global batch; None estimates them from the lengths.
      dispatch: K > 1 stacks K batches to [K, R, N]; 1 gives [R, N].
      prefetch: elements made ahead by a background thread, 0 for none.

    Returns:
      grain.IterDataset of dicts of int32 arrays; iterators have exact get_state / set_state.

    Raises:
      DataError: no examples, sizes below one, rows that process_count does not divide.
    """
    _positive(batch_size=batch_size, max_len=max_len, dispatch=dispatch)
    if not len(examples):
        raise DataError(
            "There are no training examples; see --config.split.* and "
            "--config.data.min_user_events."
        )
    lengths = examples.lengths(max_len)
    if packed:
        row_length = max_len if row_length is None else row_length
        _positive(row_length=row_length)
        if rows is None:
            rows = packed_rows(lengths, batch_size, row_length, process_count)
    else:
        rows, row_length = batch_size, max_len
    mine = ProcessRows.of(rows, process_index, process_count)
    shape = (mine.stop - mine.start, row_length)

    def make_epoch(epoch: int) -> Epoch:
        order = _rng(seed, epoch).permutation(len(examples))
        if packed:
            batch, row, column, segment = pack_epoch(lengths[order], rows, row_length)
        else:
            batch, row = np.divmod(np.arange(len(order)), rows)
            column, segment = np.zeros_like(row), np.ones_like(row)
        num_batches = int(batch.max()) + 1
        own = (row >= mine.start) & (row < mine.stop)
        by_batch = np.flatnonzero(own)
        by_batch = by_batch[np.argsort(batch[by_batch], kind="stable")]
        bounds = np.searchsorted(batch[by_batch], np.arange(num_batches + 1))

        def make(b: int) -> Batch:
            pick = by_batch[bounds[b] : bounds[b + 1]]
            return fill_batch(
                source, examples[order[pick]], max_len,
                row[pick] - mine.start, column[pick], segment[pick], shape,
            )  # fmt: skip

        return Epoch(num_batches, make)

    return prefetched(EpochIterDataset(make_epoch, dispatch), prefetch)


def pairwise_dataset(
    source: UserSequences,
    examples: Examples,
    *,
    batch_size: int,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    dispatch: int = 1,
    prefetch: int = 4,
) -> grain.IterDataset:
    """Endless (user, positive, negative) triples for BPR.

    Every training interaction of every example is a positive once per epoch; its negative is
    uniform over the items that the user did not touch in training. The last batch of an epoch is
    filled with zeros (positives 0 = no triple).

    Returns:
      grain.IterDataset of {'users', 'positives', 'negatives'}, int32 [B] (or [K, B]).

    Raises:
      DataError: no interactions, a source on disk, or a user who has touched every item.
    """
    _positive(batch_size=batch_size, dispatch=dispatch)
    if not isinstance(source, UserSequences):
        raise DataError(
            "BPR batches need the log in memory (UserSequences); out-of-core data serves the "
            "sequential models only."
        )
    users, items, _ = training_interactions(source, examples)
    if not len(users):
        raise DataError(
            "There are no training examples; see --config.split.* and "
            "--config.data.min_user_events."
        )
    stride = np.int64(source.num_items + 1)
    seen = np.unique(users * stride + items)
    touched = np.bincount(seen // stride)
    if touched.max() >= source.num_items:
        raise DataError(
            f"User number {int(np.argmax(touched))} has touched all {source.num_items} items, so "
            "there is no negative to draw; BPR needs a larger catalogue."
        )
    mine = ProcessRows.of(batch_size, process_index, process_count)

    def make_epoch(epoch: int) -> Epoch:
        order = _rng(seed, epoch).permutation(len(users))

        def make(b: int) -> Batch:
            pick = order[b * batch_size : (b + 1) * batch_size]
            user, positive = users[pick], items[pick]
            negative = _unseen(user, seen, stride, _rng(seed, epoch, b))
            missing = batch_size - len(pick)
            fields = {"users": user, "positives": positive, "negatives": negative}
            return {
                name: np.pad(value.astype(np.int32), (0, missing))[mine.start : mine.stop]
                for name, value in fields.items()
            }

        return Epoch(-(-len(users) // batch_size), make)

    return prefetched(EpochIterDataset(make_epoch, dispatch), prefetch)


def _unseen(
    users: np.ndarray, seen: np.ndarray, stride: np.int64, rng: np.random.Generator
) -> np.ndarray:
    """One item per user, uniform over 1..stride-1 without the pairs in `seen` (sorted keys)."""
    drawn = rng.integers(1, stride, len(users))
    redo = np.arange(len(users))
    while len(redo):
        keys = users[redo] * stride + drawn[redo]
        at = np.minimum(np.searchsorted(seen, keys), len(seen) - 1)
        redo = redo[seen[at] == keys]
        drawn[redo] = rng.integers(1, stride, len(redo))
    return drawn


def _rng(*words: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(words))


class _Prefetch(grain.experimental.ThreadPrefetchIterDataset):
    """grain's background thread, stopped before the interpreter takes its modules away."""

    def __iter__(self) -> grain.DatasetIterator:
        iterator = super().__iter__()
        _RUNNING.add(iterator)
        return iterator


_RUNNING: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_running() -> None:
    for iterator in list(_RUNNING):
        iterator.close()
        # grain's finalizer closes once more, when its modules are gone, and prints an error.
        iterator.close = lambda: None


def prefetched(dataset: grain.IterDataset, size: int) -> grain.IterDataset:
    """The dataset with `size` elements made ahead by a background thread; 0 leaves it as it is."""
    return dataset if size <= 0 else _Prefetch(dataset, prefetch_buffer_size=size)


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise DataError(f"data.{name} must be at least 1, got {value}.")
