"""Evaluation and prediction batches: padded, few static shapes, short users cost little.

R rows, N columns, H history items to filter out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.sequences import SequenceSource, flat_ranges
from recsys_jax.data.splits import Examples
from recsys_jax.data.windows import fill_batch

FILTERS = ("all", "window")


class EvaluationBatches:
    """Re-iterable batches, one user per row; see `evaluation_batches`."""

    def __init__(self, make: Any, plan: list[tuple[np.ndarray, int, int]]):
        self._make = make
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The distinct (N, H) that occur, in order; each costs one compilation."""
        return sorted({(n, h) for _, n, h in self._plan})

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for pick, columns, history in self._plan:
            yield self._make(pick, columns, history)


def evaluation_batches(
    source: SequenceSource,
    examples: Examples,
    *,
    batch_size: int,
    max_len: int,
    filter: str = "all",
    buckets: bool = True,
    request_times: np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> EvaluationBatches:
    """Batches for ranking the target of every example among the whole catalogue.

    Besides the training fields: 'users' int32 [R] (-1 in rows that only fill the batch),
    'lengths' int32 [R], 'targets' int32 [R] (0 where unknown), 'history' int32 [R, H].

    Args:
      filter: which items the ranking leaves out: 'all' events of the user before the target, or
        'window', those among the model's inputs (the released FuXi and HSTU code).
      buckets: sort users by history length and pad each batch only to the next of a few sizes;
        False keeps the order of `examples` and one shape.
      request_times: int64 [M], time of the request for examples without a known target; None
        takes the time of the user's last event.
      process_index, process_count: each process gets its contiguous rows of every batch.

    Raises:
      DataError: unknown filter, sizes below one, batch_size that process_count does not divide.
    """
    if filter not in FILTERS:
        raise DataError(
            f"evaluation.history_filter={filter!r} is unknown; allowed are {', '.join(FILTERS)}."
        )
    for name, value in (("batch_size", batch_size), ("max_len", max_len)):
        if value < 1:
            raise DataError(f"evaluation {name} must be at least 1, got {value}.")
    if batch_size % process_count:
        raise DataError(
            f"An evaluation batch of {batch_size} rows cannot be divided among {process_count} "
            "processes; set --config.evaluation.batch_size to a multiple of it."
        )
    begins = np.zeros_like(examples.begin) if filter == "all" else examples.starts(max_len)
    filtered = examples.target - begins
    lengths = examples.lengths(max_len)
    longest = int(filtered.max(initial=1))
    column_sizes = _sizes(max_len, max_len) if buckets else [max_len]
    history_sizes = _sizes(max_len, longest) if buckets else [longest]
    order = np.argsort(filtered, kind="stable") if buckets else np.arange(len(examples))
    mine = batch_size // process_count
    plan = []
    for start in range(0, len(order), batch_size):
        whole = order[start : start + batch_size]
        columns = _round_up(int(lengths[whole].max()), column_sizes)
        history = _round_up(int(filtered[whole].max()), history_sizes)
        own = whole[process_index * mine : (process_index + 1) * mine]
        plan.append((own, columns, history))

    def make(pick: np.ndarray, columns: int, history: int) -> dict[str, np.ndarray]:
        chosen = examples[pick]
        count = len(pick)
        rows = np.arange(count)
        batch = fill_batch(
            source, chosen, max_len, rows, np.zeros_like(rows), np.ones(count, np.int32),
            (mine, columns), None if request_times is None else request_times[pick],
        )  # fmt: skip
        users = np.full(mine, -1, np.int32)
        users[:count] = chosen.user
        sizes = np.zeros(mine, np.int32)
        sizes[:count] = lengths[pick]
        targets = np.zeros(mine, np.int32)
        targets[:count] = batch["labels"][rows, lengths[pick] - 1]
        past = np.zeros((mine, history), np.int32)
        items, _ = source.ranges(chosen.user, begins[pick], chosen.target)
        cell = flat_ranges(rows * history, filtered[pick])
        past.reshape(-1)[cell] = items
        return batch | {"users": users, "lengths": sizes, "targets": targets, "history": past}

    return EvaluationBatches(make, plan)


def _sizes(max_len: int, longest: int) -> list[int]:
    """A quarter, a half and the whole of max_len, then fourfold steps up to `longest`."""
    sizes = sorted({-(-max_len // 4), -(-max_len // 2), max_len})
    sizes = [size for size in sizes if size < longest]
    while sizes and sizes[-1] * 4 < longest and sizes[-1] >= max_len:
        sizes.append(sizes[-1] * 4)
    return sizes + [longest]


def _round_up(value: int, sizes: list[int]) -> int:
    return next(size for size in sizes if size >= value)
