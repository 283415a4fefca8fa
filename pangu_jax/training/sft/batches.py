"""Packed batches of examples: endless and resumable for training, one pass for evaluation.

R rows of the global batch; other letters in `packing`.
"""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

from pangu_jax.training.sft.encode import Example
from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.packing import FirstFitRows, RowShape, fill_row

# grain divides lengths as floats; a power of two below sys.maxsize stays in range.
_ENDLESS = 1 << 60


class PackedExamples(grain.MapDataset):
    """Endless rows: row number -> the arrays of `fill_row`."""

    def __init__(self, examples, plan: FirstFitRows, shape: RowShape, reference=None):
        super().__init__()
        self._examples, self._plan, self._shape = examples, plan, shape
        self._reference = reference

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        return _fill(self._examples, self._plan.row(int(index)), self._shape, self._reference)


def train_batches(
    examples: Sequence[Example],
    shape: RowShape,
    *,
    batch_rows: int,
    seed: int = 0,
    reference: np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Endless batches; the place in the stream is one number, so a resume is exact and immediate.

    Args:
      batch_rows: R. Process i of n makes rows [i R/n, (i+1) R/n) of every batch.
      seed: of the order of each epoch.
      reference: see `fill_row`, one row per example.

    Raises:
      FineTuneError: rows that the processes cannot share.
    """
    if batch_rows < 1 or batch_rows % process_count:
        raise FineTuneError(
            f"--config.batch_rows={batch_rows} must be a positive multiple of the {process_count} "
            "process(es)."
        )
    plan = FirstFitRows(examples, shape, seed=seed)
    rows = PackedExamples(examples, plan, shape, reference)
    dataset = rows.batch(batch_rows // process_count)[process_index::process_count]
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def fixed_batches(
    examples: Sequence[Example],
    shape: RowShape,
    *,
    batch_rows: int,
    reference: np.ndarray | None = None,
) -> tuple[list[dict[str, np.ndarray]], list[list[int]]]:
    """(batches of one pass in the examples' order, the last filled up with empty rows; the examples
    of each of their rows)."""
    rows = FirstFitRows(examples, shape, seed=0).pack(np.arange(len(examples)))
    rows += [[] for _ in range(-len(rows) % batch_rows)]
    filled = [_fill(examples, row, shape, reference) for row in rows]
    batches = [
        {name: np.stack([row[name] for row in filled[i : i + batch_rows]]) for name in filled[0]}
        for i in range(0, len(filled), batch_rows)
    ]
    return batches, rows


def _fill(examples, row, shape, reference):
    chosen = None if reference is None else reference[np.array(row, np.int64)]
    return fill_row([examples[i] for i in row], shape, chosen)
