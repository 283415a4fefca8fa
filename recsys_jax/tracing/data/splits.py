"""Division of students into training, validation and test; nested subsets; sequences.

Students, never answers, are divided: nobody is in two parts.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.tracing.data.cleaning import CleaningConfig
from recsys_jax.tracing.data.log import TEST_FOLD, AnswerLog


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How students are divided.

    Attributes:
      kind: 'random' (test_fraction, then valid_fraction of the rest), 'folds' (num_folds equal
        parts: part `fold` is the test, the next one the validation, the rest the training), or
        'given' (the source's own folds: those marked -1 are the test, or else fold number
        `fold` in their order, counted from 0; the next fold is the validation, or
        valid_fraction of the rest where only one fold is left).
      seed: of the division; it alone, with the number of students, decides it.
      train_fraction: share of the training students that is used (sparsity curves); subsets of
        one subset_seed are nested: 10 % are among the 25 %, those among the 100 %.
    """

    kind: Literal["random", "folds", "given"] = "random"
    test_fraction: float = 0.2
    valid_fraction: float = 0.1
    num_folds: int = 5
    fold: int = 0
    seed: int = 1024
    train_fraction: float = 1.0
    subset_seed: int = 0

    def __post_init__(self):
        if self.kind not in ("random", "folds", "given"):
            raise DataError(
                f"data.split.kind={self.kind!r} is not allowed; allowed are random, folds, given."
            )
        for name in ("test_fraction", "valid_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"data.split.{name} must be in [0, 1), got {getattr(self, name)}.")
        if self.kind == "folds" and not 0 <= self.fold < self.num_folds:
            raise DataError(
                f"data.split.fold={self.fold} is not in 0..{self.num_folds - 1} "
                "(data.split.num_folds)."
            )
        if self.kind == "folds" and self.num_folds < 3:
            raise DataError("data.split.num_folds must be at least 3: train, validation and test.")


@dataclasses.dataclass(frozen=True)
class Split:
    """Rising int32 arrays of dense students, disjoint."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def make_split(log: AnswerLog, config: SplitConfig | None = None) -> Split:
    """The division that a config names.

    Raises:
      DataError: a part is empty, the source has no folds of its own, a fold that is not there.
    """
    config = SplitConfig() if config is None else config
    if config.kind == "random":
        split = _random(np.arange(log.num_students), config)
    elif config.kind == "folds":
        part = np.empty(log.num_students, np.int64)
        part[_rng(config.seed).permutation(log.num_students)] = (
            np.arange(log.num_students) % config.num_folds
        )
        split = _parts(part, config.fold, (config.fold + 1) % config.num_folds)
    else:
        split = _given(log, config)
    split = dataclasses.replace(
        split, train=nested_subset(split.train, config.train_fraction, config.subset_seed)
    )
    for name in ("train", "valid", "test"):
        if not len(getattr(split, name)) and not (
            config.kind == "random" and getattr(config, f"{name}_fraction", 1) == 0
        ):
            raise DataError(
                f"The {name} part has no students: {log.num_students} students are too few for "
                f"data.split {config}."
            )
    return split


def nested_subset(students: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """A rising random subset of ceil(fraction * N) students; a larger fraction contains it.

    Raises:
      DataError: fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise DataError(f"data.split.train_fraction must be in (0, 1], got {fraction}.")
    # Rounded before ceil: 0.1 * 30 is a little above 3 in binary.
    count = int(np.ceil(np.round(fraction * len(students), 9)))
    order = _rng(seed, 1).permutation(len(students))
    return np.sort(students[order[:count]])


@dataclasses.dataclass(frozen=True)
class Sequences:
    """M pieces of students' answers: rows begin[i]..end[i] - 1 of the log, one student each.

    Attributes:
      student: int32 [M]. begin, end: int64 [M].
    """

    student: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.student)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [M]."""
        return self.end - self.begin


def make_sequences(
    log: AnswerLog, students: np.ndarray, clean: CleaningConfig | None = None
) -> Sequences:
    """Sequences of `students` (in that order) under the rules max_length, long, min_window.

    'first' and 'keep' give one sequence per student; 'chop' gives windows of max_length end to
    end, of which those below min_window are left out (unless it is the student's only one).
    """
    clean = CleaningConfig() if clean is None else clean
    begin, end = log.offsets[students], log.offsets[np.asarray(students) + 1]
    student = np.asarray(students, np.int32)
    if clean.long == "first":
        end = np.minimum(end, begin + clean.max_length)
    elif clean.long == "chop":
        windows = np.maximum(1, -(-(end - begin) // clean.max_length))
        source = np.repeat(np.arange(len(student)), windows)
        rank = np.arange(len(source)) - np.repeat(np.cumsum(windows) - windows, windows)
        student, stop = student[source], end[source]
        begin = begin[source] + rank * clean.max_length
        end = np.minimum(stop, begin + clean.max_length)
        keep = (end - begin >= clean.min_window) | (rank == 0)
        student, begin, end = student[keep], begin[keep], end[keep]
    keep = end > begin
    return Sequences(student[keep], begin[keep], end[keep])


def _random(students: np.ndarray, config: SplitConfig) -> Split:
    order = students[_rng(config.seed).permutation(len(students))]
    num_test = round(config.test_fraction * len(order))
    num_valid = round(config.valid_fraction * (len(order) - num_test))
    test, valid, train = np.split(order, [num_test, num_test + num_valid])
    return Split(*(np.sort(p).astype(np.int32) for p in (train, valid, test)))


def _given(log: AnswerLog, config: SplitConfig) -> Split:
    if log.fold is None:
        raise DataError(
            f"{log.name} has no division of its own; set --config.data.split.kind to 'random' or "
            "'folds'."
        )
    folds = np.unique(log.fold[log.fold != TEST_FOLD])
    if len(folds) == 0 or not 0 <= config.fold < len(folds):
        raise DataError(
            f"data.split.fold={config.fold} is not in 0..{len(folds) - 1}: {log.name} has the "
            f"folds {', '.join(map(str, np.unique(log.fold)))} (-1 is the test part)."
        )
    chosen = folds[config.fold]
    following = folds[(config.fold + 1) % len(folds)]
    if not (log.fold == TEST_FOLD).any():
        if len(folds) < 3:
            raise DataError(f"{log.name} has {len(folds)} folds; 'given' needs at least 3.")
        return _parts(log.fold, chosen, following)
    if len(folds) > 1:
        return _parts(log.fold, TEST_FOLD, chosen)
    rest = _random(
        np.flatnonzero(log.fold != TEST_FOLD), dataclasses.replace(config, test_fraction=0.0)
    )
    test = np.flatnonzero(log.fold == TEST_FOLD).astype(np.int32)
    return dataclasses.replace(rest, test=test)


def _parts(part: np.ndarray, test: int, valid: int) -> Split:
    groups = (~np.isin(part, (test, valid)), part == valid, part == test)
    return Split(*(np.flatnonzero(g).astype(np.int32) for g in groups))


def _rng(*words: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(words))
