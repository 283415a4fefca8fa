"""Users' histories in time order, stored as one flat array per column (CSR).

E events, U users, K users asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.schema import InteractionLog

ORDERS = ("stable", "official")


@runtime_checkable
class SequenceSource(Protocol):
    """Histories by user, in memory or on disk; what splits and batches are made from."""

    num_items: int

    @property
    def num_users(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U], events of each user."""
        ...

    def ranges(
        self, users: np.ndarray, starts: np.ndarray, stops: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Events [starts[k], stops[k]) of users[k], laid end to end.

        Returns items int32 and timestamps int64, each [sum(stops - starts)].
        """
        ...

    def timestamp_quantile(self, fraction: float) -> int:
        """Timestamp below which about this fraction of all events lies."""
        ...


@dataclasses.dataclass(frozen=True)
class UserSequences:
    """All histories in memory.

    Attributes:
      items: int32 [E], grouped by user, each user's events in time order.
      timestamps: int64 [E], same order; non-decreasing within a user.
      offsets: int64 [U + 1]; user u owns [offsets[u], offsets[u + 1]).
      num_items: catalogue size I; item ids are 1..I.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    num_items: int

    @classmethod
    def from_log(cls, log: InteractionLog, order: str = "stable") -> UserSequences:
        """Groups a log by user and sorts by time.

        order='stable': by (user, time, row of the file); ties keep the order of the file.
        order='official': the whole log is sorted by time with NumPy's default (unstable) sort and
        then grouped, as `sort_values("unix_timestamp").groupby("user_id")` of the released FuXi
        and HSTU code does. pandas sorts with the same NumPy routine, so ties fall as they do
        there if rows, dtype and NumPy build are the same; NumPy chooses its sort by processor
        (AVX-512, AVX2, ...), so the order of ties is not reproducible between machines. The
        official result has the same weakness.
        """
        if order not in ORDERS:
            raise DataError(f"data.order={order!r} is unknown; allowed are {', '.join(ORDERS)}.")
        if order == "official" and log.has_timestamps:
            by_time = np.argsort(log.timestamp, kind="quicksort")
            index = by_time[np.argsort(log.user[by_time], kind="stable")]
        else:
            index = np.lexsort((log.timestamp, log.user))
        counts = np.bincount(log.user, minlength=log.num_users)
        return cls(
            items=log.item[index],
            timestamps=log.timestamp[index],
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            num_items=log.num_items,
        )

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """See `SequenceSource.lengths`."""
        return np.diff(self.offsets)

    def user(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """Items int32 and timestamps int64 of one user, views."""
        window = slice(self.offsets[user], self.offsets[user + 1])
        return self.items[window], self.timestamps[window]

    def ranges(
        self, users: np.ndarray, starts: np.ndarray, stops: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `SequenceSource.ranges`; one gather, no loop over users."""
        index = flat_ranges(self.offsets[users] + starts, np.asarray(stops) - starts)
        return self.items[index], self.timestamps[index]

    def timestamp_quantile(self, fraction: float) -> int:
        """See `SequenceSource.timestamp_quantile`; exact."""
        return int(np.quantile(self.timestamps, fraction, method="higher"))


def flat_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(starts[k], starts[k] + lengths[k]), int64 [sum(lengths)]."""
    lengths = np.asarray(lengths, np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(np.asarray(starts, np.int64) - (ends - lengths), lengths)
