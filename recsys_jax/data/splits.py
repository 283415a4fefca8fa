"""Which events a model is trained, validated and tested on.

An example (user, begin, target) stands for inputs [max(begin, target - max_len), target) of the
user's history and the label event `target`; every earlier event of the window is a label too.
M examples, U users; all positions count from 0 within a user's history.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from recsys_jax.data.errors import DataError, suggestion
from recsys_jax.data.sequences import SequenceSource, flat_ranges

_CHUNK_EVENTS = 4_000_000


@dataclasses.dataclass(frozen=True)
class Examples:
    """M examples: user int32 [M], begin int64 [M], target int64 [M], 0 <= begin < target."""

    user: np.ndarray
    begin: np.ndarray
    target: np.ndarray

    @classmethod
    def make(cls, user: np.ndarray, target: np.ndarray, begin: np.ndarray | int = 0) -> Examples:
        user = np.asarray(user, np.int32)
        target = np.asarray(target, np.int64)
        return cls(user, np.broadcast_to(np.asarray(begin, np.int64), user.shape).copy(), target)

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, index: np.ndarray | slice) -> Examples:
        return Examples(self.user[index], self.begin[index], self.target[index])

    def starts(self, max_len: int) -> np.ndarray:
        """First input position of each window, int64 [M]."""
        return np.maximum(self.begin, self.target - max_len)

    def lengths(self, max_len: int) -> np.ndarray:
        """Number of inputs of each window, int64 [M], 1..max_len."""
        return self.target - self.starts(max_len)


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of the three parts; `valid` is empty where the protocol has none."""

    train: Examples
    valid: Examples
    test: Examples


def _by_length(lengths: np.ndarray, holdouts: int) -> list[Examples]:
    """Train and `holdouts` held-out examples per user; short users give a train example only.

    A user needs one input and one label before the first held-out event, hence 2 + holdouts
    events; shorter users are trained on whole and never evaluated.
    """
    users = np.arange(len(lengths))
    full = lengths >= 2 + holdouts
    train_target = np.where(full, lengths - 1 - holdouts, lengths - 1)
    has_train = train_target >= 1
    parts = [Examples.make(users[has_train], train_target[has_train])]
    for back in range(holdouts, 0, -1):
        parts.append(Examples.make(users[full], lengths[full] - back))
    return parts


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """Last event for the test, last but one for validation, the rest for training (default).

    User with n events: train target n-3, validation target n-2, test target n-1. Users with fewer
    than 4 events are trained on whole (target n-1) and not evaluated.
    """

    def __call__(self, source: SequenceSource) -> Split:
        return Split(*_by_length(source.lengths, holdouts=2))


@dataclasses.dataclass(frozen=True)
class FuxiOfficial:
    """Protocol of the released FuXi and HSTU code: train target n-2, test target n-1.

    There is no validation part: the released code tests after every epoch and leaves the choice
    of the epoch to the reader. Users with fewer than 3 events are trained on whole.
    """

    def __call__(self, source: SequenceSource) -> Split:
        train, test = _by_length(source.lengths, holdouts=1)
        return Split(train, test[:0], test)


@dataclasses.dataclass(frozen=True)
class TemporalGlobal:
    """One point in time for all users: train before `valid_from`, test from `test_from` on.

    Attributes:
      valid_from, test_from: timestamps; None takes the quantile below.
      valid_quantile, test_quantile: share of all events before the point in time.
      targets: which events of a user's period are targets: 'first', 'last' or 'all'. Their inputs
        are all earlier events of the user, those of the evaluation period included.
    """

    valid_from: int | None = None
    test_from: int | None = None
    valid_quantile: float = 0.8
    test_quantile: float = 0.9
    targets: str = "first"

    def __post_init__(self):
        if self.targets not in ("first", "last", "all"):
            raise DataError(
                f"split.targets={self.targets!r} is unknown; allowed are first, last, all."
            )
        for name in ("valid_quantile", "test_quantile"):
            if not 0 < getattr(self, name) < 1:
                raise DataError(
                    f"split.{name} must lie between 0 and 1, got {getattr(self, name)}."
                )

    def times(self, source: SequenceSource) -> tuple[int, int]:
        """The two points in time, resolved on this source."""
        valid, test = self.valid_from, self.test_from
        if valid is None:
            valid = source.timestamp_quantile(self.valid_quantile)
        if test is None:
            test = source.timestamp_quantile(self.test_quantile)
        if valid > test:
            raise DataError(
                f"The validation period starts at {valid}, after the test period at {test}; set "
                "--config.split.valid_from or valid_quantile below test_from or test_quantile."
            )
        return valid, test

    def __call__(self, source: SequenceSource) -> Split:
        valid_from, test_from = self.times(source)
        parts: tuple[list, list, list] = ([], [], [])
        for users, lengths, timestamps in _user_chunks(source):
            first_valid = _count_before(timestamps, lengths, valid_from)
            first_test = _count_before(timestamps, lengths, test_from)
            trained = first_valid >= 2
            parts[0].append((users[trained], first_valid[trained] - 1))
            parts[1].append(self._targets(users, first_valid, first_test))
            parts[2].append(self._targets(users, first_test, lengths))
        merged = [
            Examples.make(*(np.concatenate([p[i] for p in part]) for i in range(2)))
            for part in parts
        ]
        if not len(merged[0]):
            raise DataError(
                f"No user has two events before {valid_from}, where validation starts: nothing to "
                "train on. Choose a later --config.split.valid_from or valid_quantile."
            )
        return Split(*merged)

    def _targets(
        self, users: np.ndarray, first: np.ndarray, stop: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Users and target positions within [first, stop); position 0 has no input."""
        first = np.maximum(first, 1)
        some = stop > first
        users, first, stop = users[some], first[some], stop[some]
        if self.targets == "first":
            return users, first
        if self.targets == "last":
            return users, stop - 1

        return np.repeat(users, stop - first), flat_ranges(first, stop - first)


SPLITS = {
    "leave_one_out": LeaveOneOut,
    "fuxi_official": FuxiOfficial,
    "temporal": TemporalGlobal,
}


def make_split(name: str, **options) -> LeaveOneOut | FuxiOfficial | TemporalGlobal:
    """The split rule of a config: a key of SPLITS and its options.

    Raises DataError for an unknown name or option.
    """
    if name not in SPLITS:
        raise DataError(
            f"split.kind={name!r} is unknown; allowed are {', '.join(SPLITS)}."
            + suggestion(name, SPLITS)
        )
    known = [field.name for field in dataclasses.fields(SPLITS[name])]
    for option in options:
        if option not in known:
            raise DataError(
                f"The split {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}."
                + suggestion(option, known)
            )
    return SPLITS[name](**options)


def next_event_examples(source: SequenceSource) -> Examples:
    """Examples that ask for the event after each user's last one (prediction)."""
    users = np.flatnonzero(source.lengths > 0)
    return Examples.make(users, source.lengths[users])


def tile_windows(examples: Examples, max_len: int) -> Examples:
    """Examples whose windows cover long histories whole, not only their last max_len events.

    Each example with more than max_len inputs becomes several, its windows end to end and not
    overlapping, so that every event after `begin` is a label exactly once. The released code
    trains on the last window only.
    """
    count = -(-(examples.target - examples.begin) // max_len)
    which = np.repeat(np.arange(len(examples)), count)

    back = flat_ranges(np.zeros(len(examples), np.int64), count)
    tiled = examples[which]
    return Examples(tiled.user, tiled.begin, tiled.target - back * max_len)


def training_interactions(
    source: SequenceSource, examples: Examples
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every event that training may see: [begin, target] of each training example.

    Returns (users int32, items int32, timestamps int64), one entry per event. For examples of
    `tile_windows` pass the untiled ones: theirs would count early events several times.
    """
    stops = examples.target + 1
    items, timestamps = source.ranges(examples.user, examples.begin, stops)
    return np.repeat(examples.user, stops - examples.begin), items, timestamps


def training_item_counts(source: SequenceSource, examples: Examples) -> np.ndarray:
    """How often each item occurs in the training part, int64 [num_items + 1] (entry 0 is 0)."""
    counts = np.zeros(source.num_items + 1, np.int64)
    for chunk in _example_chunks(examples):
        counts += np.bincount(training_interactions(source, chunk)[1], minlength=len(counts))
    return counts


def _example_chunks(examples: Examples) -> Iterator[Examples]:
    ends = np.cumsum(examples.target + 1 - examples.begin)
    start = 0
    while start < len(examples):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK_EVENTS, side="right")))
        yield examples[start:stop]
        start = stop


def _user_chunks(source: SequenceSource) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Users int64 [K], their lengths and their timestamps end to end, in bounded pieces."""
    lengths = source.lengths
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK_EVENTS, side="right")))
        users = np.arange(start, stop)
        part = lengths[start:stop]
        _, timestamps = source.ranges(users, np.zeros_like(part), part)
        yield users, part, timestamps
        start = stop


def _count_before(timestamps: np.ndarray, lengths: np.ndarray, time: int) -> np.ndarray:
    """How many of each user's events lie before `time`, int64 [K]."""
    running = np.concatenate([[0], np.cumsum(timestamps < time)])
    ends = np.cumsum(lengths)
    return running[ends] - running[ends - lengths]
