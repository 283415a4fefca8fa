"""S3Rec sequence files: one line per user, `user item item ...` in time order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.tables import readable


def read_s3rec(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(users, items), int64 [E] each, events in the order of the file.

    Raises:
      DataError: no such file, empty file, an id that is not a whole number, a user without
        items, a user on two lines.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {path}; set --config.data.path.")
    users, items, line_of = [], [], {}
    with readable(path), open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            fields = line.split()
            if not fields:
                continue
            try:
                user, *sequence = map(int, fields)
            except ValueError:
                bad = next(f for f in fields if not f.lstrip("-").isdigit())
                raise DataError(
                    f"{path} line {number}: {bad!r} is not a whole number; a sequence file has "
                    "lines `user item item ...`."
                ) from None
            if not sequence:
                raise DataError(f"{path} line {number}: user {user} has no items.")
            if user in line_of:
                raise DataError(
                    f"{path} line {number}: user {user} was already on line {line_of[user]}; a "
                    "sequence file has one line per user. Join the lines in time order."
                )
            line_of[user] = number
            users.append(np.full(len(sequence), user, np.int64))
            items.append(np.array(sequence, np.int64))
    if not users:
        raise DataError(f"{path} holds no interactions: the file is empty.")
    return np.concatenate(users), np.concatenate(items)
