"""Rows of fixed length out of documents of any length, as plans of (document, start, stop).

A document's size counts its end-of-document token. Plans need sizes only, so that every process
can work out any row by itself and reads no document that its own rows do not hold.
"""

from __future__ import annotations

import bisect
import collections
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Order = Callable[[int], np.ndarray]
_KEPT_EPOCHS = 2


class Pieces(NamedTuple):
    """Tokens [start, stop) of each document of a row, in order; int64 [P] each."""

    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray


class ConcatRows:
    """Documents end to end, epoch after epoch, cut every `row_length` tokens.

    No token is lost and no row is padded; a document that meets the end of a row goes on in the
    next one. Row r holds tokens [start + r * row_length, start + (r + 1) * row_length) of the
    endless stream, whatever the row length of an earlier phase was.

    Args:
      sizes: int64 [M], tokens per document, each at least 1.
      order: epoch -> documents in order (places in sizes).
      start: tokens of the stream to leave out.
    """

    def __init__(self, sizes: np.ndarray, row_length: int, order: Order, start: int = 0):
        self._sizes, self._row_length, self._order = sizes, row_length, order
        self._start = start
        self._begins = [0]  # token at which each epoch begins, as far as known
        self._plans: collections.OrderedDict[int, tuple] = collections.OrderedDict()
        self._lock = threading.Lock()

    def row(self, number: int) -> Pieces:
        """The pieces of a row, any row at any time."""
        at = self._start + number * self._row_length
        end = at + self._row_length
        parts = []
        while at < end:
            with self._lock:
                epoch = self._epoch_of(at)
                order, ends = self._plan(epoch)
                begin = self._begins[epoch]
            stop = min(end, begin + int(ends[-1]))
            first = int(np.searchsorted(ends, at - begin, side="right"))
            last = int(np.searchsorted(ends, stop - begin, side="left"))
            document = order[first : last + 1]
            heads = begin + ends[first : last + 1] - self._sizes[document]
            starts = np.maximum(at - heads, 0)
            stops = np.minimum(stop - heads, self._sizes[document])
            parts.append((document, starts, stops))
            at = stop
        return Pieces(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _epoch_of(self, token: int) -> int:
        while self._begins[-1] <= token:
            epoch = len(self._begins) - 1
            self._begins.append(self._begins[-1] + int(self._plan(epoch)[1][-1]))
        return bisect.bisect_right(self._begins, token) - 1

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._plans:
            order = self._order(epoch)
            self._plans[epoch] = (order, np.cumsum(self._sizes[order]))
            while len(self._plans) > _KEPT_EPOCHS:
                self._plans.popitem(last=False)
        return self._plans[epoch]


class ShuffledRows:
    """Rows of another plan in an order of their own within successive windows.

    Successive rows are pieces of one document wherever documents are longer than rows; a window
    of some hundred rows spreads them over many batches. The order of windows stays, so a
    curriculum does.

    Args:
      window: rows that change places among each other. key: integers that seed the order.
    """

    def __init__(self, plan, window: int, key: tuple[int, ...]):
        self._plan, self._window, self._key = plan, window, key
        self._orders: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def row(self, number: int) -> Pieces:
        """The pieces of a row, any row at any time."""
        window, place = divmod(number, self._window)
        with self._lock:
            if window not in self._orders:
                rng = np.random.default_rng((*self._key, window))
                self._orders[window] = rng.permutation(self._window)
                while len(self._orders) > _KEPT_EPOCHS:
                    self._orders.popitem(last=False)
            order = self._orders[window]
        return self._plan.row(window * self._window + int(order[place]))


class WholeRows:
    """Whole documents in rows, the rest of a row left empty; only longer ones are cut.

    Documents of more than row_length tokens are cut into pieces of that length. Pieces go, in the
    order of the epoch, into the fullest of `open_rows` open rows that has room; when none has,
    the fullest is closed. No row spans two epochs.
    """

    def __init__(self, sizes: np.ndarray, row_length: int, order: Order, open_rows: int = 64):
        self._sizes, self._row_length, self._order = sizes, row_length, order
        self._open_rows = open_rows
        self._begins = [0]  # row at which each epoch begins
        self._plans: collections.OrderedDict[int, list] = collections.OrderedDict()
        self._lock = threading.Lock()

    def row(self, number: int) -> Pieces:
        """The pieces of a row, any row at any time."""
        with self._lock:
            while self._begins[-1] <= number:
                epoch = len(self._begins) - 1
                self._begins.append(self._begins[-1] + len(self._plan(epoch)))
            epoch = bisect.bisect_right(self._begins, number) - 1
            pieces = self._plan(epoch)[number - self._begins[epoch]]
        return Pieces(*np.array(pieces, np.int64).reshape(-1, 3).T)

    def _plan(self, epoch: int) -> list[list[tuple[int, int, int]]]:
        if epoch not in self._plans:
            self._plans[epoch] = self._pack(self._order(epoch))
            while len(self._plans) > _KEPT_EPOCHS:
                self._plans.popitem(last=False)
        return self._plans[epoch]

    def _pack(self, order: np.ndarray) -> list[list[tuple[int, int, int]]]:
        done: list[list[tuple[int, int, int]]] = []
        rows: list[tuple[int, int]] = []  # (room, number into `filling`), sorted by room
        filling: dict[int, list[tuple[int, int, int]]] = {}
        for document in order.tolist():
            size = int(self._sizes[document])
            for start in range(0, size, self._row_length):
                need = min(self._row_length, size - start)
                at = bisect.bisect_left(rows, (need, -1))
                if at == len(rows):
                    if len(rows) == self._open_rows:
                        done.append(filling.pop(rows.pop(0)[1]))
                    room, number = self._row_length, max(filling, default=-1) + 1
                    filling[number] = []
                else:
                    room, number = rows.pop(at)
                filling[number].append((document, start, start + need))
                if room == need:
                    done.append(filling.pop(number))
                else:
                    bisect.insort(rows, (room - need, number))
        return done + [filling[number] for _, number in rows]
