"""Lists of different lengths in two flat arrays (compressed sparse rows)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from recsys_jax.data.sequences import flat_ranges


@dataclasses.dataclass(frozen=True)
class Ragged:
    """N lists: list i is values[offsets[i] : offsets[i + 1]].

    Attributes:
      offsets: int64 [N + 1], from 0, never falling.
      values: [sum of lengths], any dtype.
    """

    offsets: np.ndarray
    values: np.ndarray

    @classmethod
    def from_lengths(cls, lengths: np.ndarray, values: np.ndarray) -> Ragged:
        """lengths: int [N]; values: their concatenated lists."""
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values)

    @classmethod
    def from_lists(cls, lists: Sequence[Iterable], dtype=None) -> Ragged:
        """One list per element of `lists`."""
        lists = [list(entry) for entry in lists]
        flat = [value for entry in lists for value in entry]
        values = np.array(flat, dtype=dtype if dtype is not None or flat else np.int64)
        return cls.from_lengths(np.array([len(entry) for entry in lists], np.int64), values)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """int64 [len(values)], the list that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, index: np.ndarray) -> Ragged:
        """The lists at int [M] `index` (or a bool mask [N]), in that order."""
        index = np.asarray(index)
        if index.dtype == bool:
            index = np.flatnonzero(index)
        lengths = self.lengths[index]
        return Ragged.from_lengths(lengths, self.values[flat_ranges(self.offsets[index], lengths)])

    def padded(self, width: int | None = None) -> np.ndarray:
        """[N, width] with zeros after each list; width None takes the longest list (at least 1)."""
        lengths = self.lengths
        width = max(1, int(lengths.max(initial=0))) if width is None else width
        table = np.zeros((len(self), width), self.values.dtype)
        column = flat_ranges(np.zeros(len(self), np.int64), lengths)
        table[self.rows, column] = self.values
        return table


def sorted_sets(rows: np.ndarray, values: np.ndarray, num_rows: int) -> Ragged:
    """Distinct `values` of each row in rising order; rows and values int [K], in any order."""
    stride = np.int64(values.max(initial=0)) + 1
    keys = np.unique(rows.astype(np.int64) * stride + values)
    found, kept = np.divmod(keys, stride)
    counts = np.bincount(found, minlength=num_rows)
    return Ragged.from_lengths(counts, kept.astype(values.dtype))
