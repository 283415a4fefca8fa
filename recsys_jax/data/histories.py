"""Histories never seen in training, read from a file for prediction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.load import Columns
from recsys_jax.data.schema import InteractionLog, check_ids, check_time
from recsys_jax.data.sequences import UserSequences
from recsys_jax.data.tables import id_column, readable, require_columns, scan_table, time_column
from recsys_jax.data.vocabulary import Vocabulary

KINDS = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl"}


@dataclasses.dataclass(frozen=True)
class Histories:
    """What a prediction file holds.

    Attributes:
      sequences: histories with the model's dense item ids; feed them to `next_event_examples` and
        `evaluation_batches`.
      user_ids: object array [U], original ids in the order of `sequences`.
      has_timestamps: False if the file has none; events then lie one time unit apart.
      skipped_events: events left out because training never saw their item.
      skipped_users: original ids of users of whom nothing was left.
    """

    sequences: UserSequences
    user_ids: np.ndarray
    has_timestamps: bool
    skipped_events: int
    skipped_users: tuple[Any, ...]


def histories_from_file(
    path: str | Path,
    vocabulary: Vocabulary | InteractionLog,
    *,
    columns: Columns | None = None,
    separator: str = ",",
    time_scale: float = 1.0,
    unknown: str = "error",
) -> Histories:
    """Reads histories with original ids from CSV, Parquet or JSON lines (by suffix).

    CSV and Parquet: one event per row, columns user, item and, if there is one, timestamp.
    JSON lines: {"user": ..., "items": [...], "timestamps": [...]}, timestamps optional. Events are
    sorted by time within a user; ties and files without times keep the order of the file.

    Args:
      vocabulary: the items that the model was trained with.
      time_scale: as in training (`LogConfig.time_scale`).
      unknown: what to do with an item that is not in the vocabulary: 'error' or 'skip'.

    Raises:
      DataError: unknown suffix, missing column, empty file, bad line or time, a user on two JSON
        lines, an unknown item, nobody left.
    """
    if unknown not in ("error", "skip"):
        raise DataError(f"predict.unknown={unknown!r} is unknown; allowed are error, skip.")
    if isinstance(vocabulary, InteractionLog):
        vocabulary = Vocabulary.of_items(vocabulary)
    path = Path(path)
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: the file name must end in one of {', '.join(KINDS)}.")
    if kind == "jsonl":
        users, items, times, rows = _read_jsonl(path)
    else:
        users, items, times, rows = _read_table(path, kind, columns or Columns(), separator)
    if not len(users):
        raise DataError(f"{path} holds no histories: the file is empty or has only a header.")

    dense = vocabulary.dense(items.tolist())
    missing = dense == 0
    if missing.any() and unknown == "error":
        first = int(np.argmax(missing))
        raise DataError(
            f"{path} row {rows[first]}: item {items.tolist()[first]!r} was never seen in training "
            f"({int(missing.sum())} such events, {len(set(items[missing].tolist()))} items). "
            "Remove them, or leave them out with --config.predict.unknown=skip."
        )
    order_of_users = dict.fromkeys(users.tolist())
    number = {user: index for index, user in enumerate(order_of_users)}
    codes = np.array([number[user] for user in users.tolist()])
    time = (
        np.arange(len(users)) if times is None else check_time(times, str(path), rows, time_scale)
    )
    index = np.lexsort((time, codes))
    index = index[~missing[index]]
    counts = np.bincount(codes[index], minlength=len(number))
    names = np.array([*number, None], dtype=object)[:-1]
    if not counts.any():
        raise DataError(f"{path}: none of the {len(names)} users has an item seen in training.")
    if times is None:  # ranks within the user, not rows of the file
        starts = np.cumsum(counts) - counts
        time[index] = np.arange(len(index)) - np.repeat(starts, counts)
    kept = counts > 0
    return Histories(
        sequences=UserSequences(
            items=dense[index],
            timestamps=time[index].astype(np.int64),
            offsets=np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int64),
            num_items=len(vocabulary.ids) - 1,
        ),
        user_ids=names[kept],
        has_timestamps=times is not None,
        skipped_events=int(missing.sum()),
        skipped_users=tuple(names[~kept]),
    )


def _read_table(path: Path, kind: str, columns: Columns, separator: str) -> tuple:
    with readable(path):
        frame = scan_table(path, kind, separator, key="predict.histories").collect()
    require_columns(frame.columns, {"user": columns.user, "item": columns.item}, str(path))
    first = 2 if kind == "csv" else 1
    users = check_ids(id_column(frame[columns.user]), "user", str(path), first)
    items = check_ids(id_column(frame[columns.item]), "item", str(path), first)
    has_time = columns.timestamp in frame.columns
    times = time_column(frame[columns.timestamp]) if has_time else None
    return users, items, times, np.arange(first, first + len(users))


def _read_jsonl(path: Path) -> tuple:
    if not path.is_file():
        raise DataError(f"There is no file {path}; set --config.predict.histories.")
    users, items, times, rows = [], [], [], []
    line_of: dict[Any, int] = {}
    with readable(path), open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                user, sequence = record["user"], list(record["items"])
                stamps = record.get("timestamps")
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f'{path} line {number} is not of the form {{"user": ..., "items": [...]}} '
                    f"({type(error).__name__}: {error})."
                ) from error
            if user in line_of:
                raise DataError(
                    f"{path} line {number}: user {user!r} was already on line {line_of[user]}; "
                    "a file of histories has one line per user."
                )
            if not sequence:
                raise DataError(f"{path} line {number}: user {user!r} has no items.")
            if stamps is not None and len(stamps) != len(sequence):
                raise DataError(
                    f"{path} line {number}: {len(stamps)} timestamps for {len(sequence)} items."
                )
            if line_of and (stamps is None) != (not times):
                raise DataError(f"{path} line {number}: give timestamps on all lines or on none.")
            line_of[user] = number
            users += [user] * len(sequence)
            rows += [number] * len(sequence)
            items += sequence
            times += stamps or []
    column = np.array([*items, None], dtype=object)[:-1]
    return (
        np.array([*users, None], dtype=object)[:-1],
        column,
        np.array(times) if times else None,
        rows,
    )
