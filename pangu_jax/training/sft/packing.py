"""Whole examples into rows by first fit, under three limits, and a row as arrays.

Letters: T tokens of a row, P its places with a label, S its sequences.
"""

from __future__ import annotations

import bisect
import collections
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pangu_jax.training.sft.encode import Example

NO_LABEL = -1
_OPEN_ROWS = 64
_KEPT_EPOCHS = 2
_MOST_GROUPS = 64


class RowShape(NamedTuple):
    """Limits of a row. tokens: T. labels: P. groups: examples; width: sequences of each, S = both.

    A limit on labels below T lets the logits be formed at P places instead of T.
    """

    tokens: int
    labels: int
    groups: int
    width: int = 1

    @property
    def sequences(self) -> int:
        return self.groups * self.width


def row_shape(examples: Sequence[Example], seq_len: int, *, slack: float = 1.25) -> RowShape:
    """The smallest shape that packs these examples well; each of them fits it.

    labels: the share of learned tokens, `slack` times over, or the longest answer; a multiple of 16
      places, at most seq_len.
    """
    share = sum(e.labels for e in examples) / sum(e.size for e in examples)
    labels = max(max(e.labels for e in examples), slack * share * seq_len)
    labels = min(-(-int(np.ceil(labels)) // 16) * 16, seq_len)
    groups = min(seq_len // min(e.size for e in examples), _MOST_GROUPS)
    return RowShape(seq_len, labels, max(groups, 1), len(examples[0].sequences))


class FirstFitRows:
    """Endless rows: each epoch its own seeded order, packed, its rows shuffled; no row spans two.

    An example goes into the first of 64 open rows that has room for its tokens and its labels; if
    none has, into a new one, for which the oldest is closed.
    """

    def __init__(self, examples: Sequence[Example], shape: RowShape, *, seed: int):
        self._sizes = np.array([e.size for e in examples], np.int64)
        self._labels = np.array([e.labels for e in examples], np.int64)
        self._shape, self._seed = shape, seed
        self._begins = [0]  # row at which each epoch begins
        self._plans: collections.OrderedDict[int, list] = collections.OrderedDict()
        self._lock = threading.Lock()

    def row(self, number: int) -> list[int]:
        """Examples of a row, any row at any time."""
        with self._lock:
            while self._begins[-1] <= number:
                epoch = len(self._begins) - 1
                self._begins.append(self._begins[-1] + len(self._plan(epoch)))
            epoch = bisect.bisect_right(self._begins, number) - 1
            return self._plan(epoch)[number - self._begins[epoch]]

    def rows_of_epoch(self, epoch: int = 0) -> int:
        """How many rows an epoch has; epochs differ by a few."""
        with self._lock:
            return len(self._plan(epoch))

    def _plan(self, epoch: int) -> list[list[int]]:
        if epoch not in self._plans:
            rng = np.random.default_rng((self._seed, epoch))
            rows = self.pack(rng.permutation(len(self._sizes)))
            self._plans[epoch] = [rows[i] for i in rng.permutation(len(rows))]
            while len(self._plans) > _KEPT_EPOCHS:
                self._plans.popitem(last=False)
        return self._plans[epoch]

    def pack(self, order: np.ndarray) -> list[list[int]]:
        """Rows of the examples in this order."""
        done: list[list[int]] = []
        rows: list[list[int]] = []
        room = np.zeros((0, 3), np.int64)
        full = np.array([self._shape.tokens, self._shape.labels, self._shape.groups])
        for example in order.tolist():
            need = np.array([self._sizes[example], self._labels[example], 1])
            fits = np.flatnonzero((room >= need).all(axis=1))
            if len(fits):
                place = int(fits[0])
            else:
                if len(rows) == _OPEN_ROWS:
                    done.append(rows.pop(0))
                    room = room[1:]
                rows.append([])
                room = np.concatenate([room, full[None]])
                place = len(rows) - 1
            rows[place].append(example)
            room[place] -= need
        return done + rows


def fill_row(
    examples: Sequence[Example], shape: RowShape, reference: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """One row as arrays.

    Args:
      examples: of the row, within the shape's limits.
      reference: float [len(examples), width], log-probabilities of a reference model, or None.

    Returns:
      tokens, segment_ids (from 1, 0 is padding), positions (from 0 in each sequence), labels (the
      next token of the sequence where it is to be learned, NO_LABEL elsewhere): int32 [T].
      loss_positions: int32 [P], places of the labels, -1 behind the last. segment_weights: float32
      [S], 0 for sequences that are not there. reference: float32 [S], where given.
    """
    row = {name: np.zeros(shape.tokens, np.int32) for name in ("tokens", "segment_ids",
                                                               "positions")}  # fmt: skip
    row["labels"] = np.full(shape.tokens, NO_LABEL, np.int32)
    row["segment_weights"] = np.zeros(shape.sequences, np.float32)
    at = segment = 0
    for example in examples:
        for sequence in example.sequences:
            size = len(sequence.tokens)
            here = slice(at, at + size)
            row["segment_weights"][segment] = example.weight
            segment += 1
            row["tokens"][here] = sequence.tokens
            row["segment_ids"][here] = segment
            row["positions"][here] = np.arange(size)
            row["labels"][at : at + size - 1] = np.where(
                sequence.learn[1:], sequence.tokens[1:], NO_LABEL
            )
            at += size
    places = np.flatnonzero(row["labels"] >= 0)
    row["loss_positions"] = np.full(shape.labels, -1, np.int32)
    row["loss_positions"][: len(places)] = places
    if reference is not None:
        row["reference"] = np.zeros(shape.sequences, np.float32)
        row["reference"][:segment] = reference.reshape(-1)
    return row
