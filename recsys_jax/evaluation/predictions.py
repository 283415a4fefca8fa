"""Recommendations per user as a Parquet or CSV file, written chunk by chunk.

One row per (user, place): user, rank (1 = best), item, score and, where known, title.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

FORMATS = (".parquet", ".csv")
_PART_ROWS = 500_000


class PredictionError(ValueError):
    """The predictions cannot be written; the message says what to change."""


def write_predictions(
    path,
    lists: Iterable[Any],
    *,
    user_ids: Sequence[Any] | np.ndarray | None = None,
    item_ids: Sequence[Any] | np.ndarray | None = None,
    titles: Mapping[int, str] | Sequence[str | None] | None = None,
) -> int:
    """Write recommendation lists; returns the number of users written.

    Memory holds one batch at a time. The file appears under its name only when it is complete: an
    interrupted or failed run leaves an older file as it was.

    Args:
      path: ends in .parquet or .csv.
      lists: batches with fields users [u] (dense, 0..), items [u, k] (dense, 1.., 0 = empty place)
        and scores [u, k]: what `Evaluator.recommend` yields.
      user_ids: original user id at each dense id; None writes the dense ids.
      item_ids: original item id at each dense id, entry 0 is padding; None writes dense ids.
      titles: title of each dense item id (entry 0 is padding, or a mapping); None omits the column.
    Raises:
      PredictionError: another file ending, an id without original, no user at all.
      OSError: the disk is full or the folder cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix not in FORMATS:
        raise PredictionError(
            f"Cannot write predictions to {path.name!r}: the file name must end in "
            f"{' or '.join(FORMATS)} (--config.predict.output)."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    user_ids = None if user_ids is None else np.asarray(user_ids)
    item_ids = None if item_ids is None else np.asarray(item_ids)
    number = 0

    def frames():
        nonlocal number
        for batch in lists:
            if len(batch.users):
                number += len(batch.users)
                yield _frame(batch, user_ids, item_ids, titles)

    try:
        (_write_parquet if path.suffix == ".parquet" else _write_csv)(partial, frames())
        if not number:
            raise PredictionError("There is no user to recommend to; the input holds no history.")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return number


def _frame(batch, user_ids, item_ids, titles):
    import polars as pl

    items, scores = np.asarray(batch.items), np.asarray(batch.scores)
    count, k = items.shape
    there = items.reshape(-1) > 0
    users = np.repeat(np.asarray(batch.users), k)[there]
    ranks = np.tile(np.arange(1, k + 1, dtype=np.int32), count)[there]
    items = items.reshape(-1)[there]
    columns = {
        "user": _original(user_ids, users, "user"),
        "rank": ranks,
        "item": _original(item_ids, items, "item"),
        "score": scores.reshape(-1)[there].astype(np.float32),
    }
    frame = pl.DataFrame(columns)
    if titles is None:
        return frame
    if isinstance(titles, Mapping):
        text = [titles.get(int(i)) for i in items]
    else:
        text = [titles[int(i)] for i in items]
    return frame.with_columns(pl.Series("title", text, dtype=pl.String))


def _original(ids, dense, what):
    if ids is None:
        return dense
    if dense.size and dense.max() >= len(ids):
        raise PredictionError(
            f"There is no original id for {what} {dense.max()}: the id table has {len(ids)} "
            "entries. The checkpoint and the data belong to different data sets."
        )
    out = ids[dense]
    return out.astype(str) if out.dtype == object else out


def _write_csv(path, frames):
    with open(path, "wb") as file:
        for index, frame in enumerate(frames):
            frame.write_csv(file, include_header=index == 0)


def _write_parquet(path, frames):
    """Part files first, then one streaming pass joins them: never more than a part in memory."""
    import polars as pl

    with tempfile.TemporaryDirectory(prefix=".predictions-", dir=path.parent) as folder:
        held, rows, parts = [], 0, []

        def flush():
            nonlocal held, rows
            if held:
                parts.append(pathlib.Path(folder) / f"{len(parts):06d}.parquet")
                pl.concat(held).write_parquet(parts[-1])
                held, rows = [], 0

        for frame in frames:
            held.append(frame)
            rows += frame.height
            if rows >= _PART_ROWS:
                flush()
        flush()
        if parts:
            pl.scan_parquet(parts, glob=False).sink_parquet(path)
