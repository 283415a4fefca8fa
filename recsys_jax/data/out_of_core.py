"""Logs that do not fit in memory: from CSV or Parquet to one record per user on disk.

Three passes, each bounded in memory: (1) count users and items, (2) rewrite the events as fixed
16-byte rows into files that hold a contiguous range of users each, in the order of the log,
(3) sort each of those files by (user, time) and write it as an array_record shard. A run that
was interrupted continues with the pass, and in pass 3 the shard, it was at.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pangu_jax.data.wheel import locked
from recsys_jax.data.array_record_sequences import (
    FORMAT,
    MANIFEST,
    ArrayRecordSequences,
    encode_record,
)
from recsys_jax.data.errors import DataError, DataWarning
from recsys_jax.data.load import Columns
from recsys_jax.data.out_of_core_input import files_of, open_columns
from recsys_jax.data.tables import readable

if TYPE_CHECKING:
    import polars as pl

ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("timestamp", "<i8")])
_BATCH_ROWS = 500_000
_HISTOGRAM_BINS = 1 << 20
_QUANTILES = 10_001


def preprocess(
    path: str | Path,
    folder: str | Path,
    *,
    kind: str | None = None,
    columns: Columns | None = None,
    separator: str = ",",
    time_scale: float = 1.0,
    min_user_events: int = 0,
    shard_events: int = 2_000_000,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> ArrayRecordSequences:
    """Writes a log as array_record shards and opens them; does nothing if that was done before.

    Users are numbered in the order of their sorted original ids and so are items; events are
    sorted by (user, time, row of the log). Users with fewer than max(2, min_user_events) events
    are left out with a counted warning. Ratings, behaviours and features are not kept.

    Args:
      path: CSV or Parquet file, folder or glob of files.
      folder: where the result goes; needs about 16 bytes an event more while it is written.
      kind: 'csv' or 'parquet'; None takes the suffix of `path`.
      shard_events: events per shard; sorting one takes about 100 bytes of memory an event.
      overwrite: throw away what another log or setting has left in `folder`.
      report: called with a line of text at every stage.

    Raises:
      DataError: missing column, empty file, missing ids, times that are not numbers >= 0, nobody
        left, a folder that holds another data set.
    """
    columns = columns or Columns()
    path, folder = Path(path), Path(folder)
    kind = kind or path.suffix.lstrip(".").lower()
    if kind not in ("csv", "parquet"):
        raise DataError(f"{path}: data.source must be csv or parquet, got {kind!r}.")
    if not time_scale > 0:
        raise DataError(f"data.time_scale must be positive, got {time_scale}.")
    settings = {
        "files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files_of(path)],
        "columns": dataclasses.asdict(columns),
        "options": [kind, separator, float(time_scale), int(min_user_events), int(shard_events)],
    }
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        work = folder / ".work"
        if _same_or_refuse(folder, work, fingerprint, overwrite):
            return ArrayRecordSequences(folder)
        work.mkdir(exist_ok=True)
        _write_json(work / "fingerprint.json", fingerprint)
        try:
            with readable(path):
                frame, first_row = open_columns(path, kind, separator, columns)
                _count(frame, work, str(path), first_row, min_user_events, report)
                plan = _plan(work, shard_events)
                histogram = _partition(frame, work, plan, time_scale, report)
        except DataError:
            # Of a log that cannot be used nothing is worth keeping, and the corrected one may
            # have the folder.
            shutil.rmtree(work)
            raise
        shards = _shards(folder, work, plan, report)
        _finish(folder, work, plan, shards, histogram, fingerprint, path.stem)
        shutil.rmtree(work)
    return ArrayRecordSequences(folder)


def _same_or_refuse(folder: Path, work: Path, fingerprint: str, overwrite: bool) -> bool:
    """True if the folder holds this result already; clears it or raises if it holds another."""
    manifest, started = folder / MANIFEST, work / "fingerprint.json"
    if manifest.is_file():
        if json.loads(manifest.read_text()).get("fingerprint") == fingerprint:
            return True
        other = manifest
    elif started.is_file() and json.loads(started.read_text()) != fingerprint:
        other = started
    else:
        return False
    if not overwrite:
        raise DataError(
            f"{folder} holds the result of another log or of other settings; set "
            "--config.data.shards to an empty folder, or delete this one (in Python: "
            "overwrite=True)."
        )
    other.unlink()
    shutil.rmtree(work, ignore_errors=True)
    for shard in folder.glob("shard-*.array_record"):
        shard.unlink()
    return False


def _count(
    frame: pl.LazyFrame, work: Path, source: str, first_row: int, min_events: int, report: Callable
) -> None:
    """Pass 1: checks the columns and writes the vocabularies and counts."""
    import polars as pl

    if (work / "counts.json").is_file():
        return
    report("pass 1 of 3: counting users and items")
    time = pl.col("timestamp")
    bad_time = time.is_null() | (time < 0) | time.is_nan() | time.is_infinite()
    if frame.collect_schema()["timestamp"].is_integer():
        bad_time = time.is_null() | (time < 0)
    bad = pl.any_horizontal(pl.col("user", "item").is_null()) | bad_time
    summary = frame.select(
        events=pl.len(), bad=bad.sum(), first=time.min(), last=time.max()
    ).collect(engine="streaming")
    events, num_bad, first, last = summary.row(0)
    if not events:
        raise DataError(f"{source} holds no interactions: it is empty or has only a header.")
    if num_bad:
        rows = frame.with_row_index("row").filter(bad).head(1).collect(engine="streaming")
        row = rows.row(0, named=True)
        number = row.pop("row") + first_row
        raise DataError(
            f"{source} row {number}: {row} has a missing id, or a timestamp that is missing, NaN "
            f"or negative ({num_bad} such rows)."
        )
    need = max(2, min_events)
    users = frame.group_by("user").agg(events=pl.len()).collect(engine="streaming")
    items = frame.select("item").unique().collect(engine="streaming")
    kept = users.filter(pl.col("events") >= need)
    if not len(kept):
        raise DataError(
            f"Nobody is left of the {len(users)} users of {source}: a user needs at least {need} "
            "events (data.min_user_events)."
        )
    if len(kept) < len(users):
        warnings.warn(
            f"{source}: {len(users) - len(kept)} user(s) with fewer than {need} events dropped.",
            DataWarning,
            stacklevel=3,
        )
    kept.sort("user").rename({"user": "id"}).write_parquet(work / "users.parquet")
    items.sort("item").rename({"item": "id"}).write_parquet(work / "items.parquet")
    _write_json(work / "counts.json", {"events": events, "first": first, "last": last})
    report(f"  {events} events, {len(kept)} of {len(users)} users kept, {len(items)} items")


@dataclasses.dataclass(frozen=True)
class _Plan:
    """lengths int64 [U]; shard s holds users [bounds[s], bounds[s + 1])."""

    lengths: np.ndarray
    bounds: np.ndarray

    @property
    def num_shards(self) -> int:
        return len(self.bounds) - 1


def _plan(work: Path, shard_events: int) -> _Plan:
    import polars as pl

    lengths = pl.read_parquet(work / "users.parquet", columns=["events"])["events"]
    lengths = lengths.to_numpy().astype(np.int64)
    shard = (np.cumsum(lengths) - lengths) // max(1, shard_events)
    inner = np.flatnonzero(np.diff(shard)) + 1
    return _Plan(lengths, np.concatenate([[0], inner, [len(lengths)]]))


def _lookup(path: Path) -> Callable[[pl.Series], np.ndarray]:
    """Function from a column of original ids to their places in a vocabulary, -1 if absent."""
    import polars as pl

    ids = pl.read_parquet(path, columns=["id"])["id"]
    if not ids.dtype.is_integer():
        table = pl.DataFrame({"id": ids, "dense": np.arange(len(ids), dtype=np.int64)})

        def by_join(column: pl.Series) -> np.ndarray:
            joined = column.to_frame("id").join(table, "id", "left", maintain_order="left")
            return joined["dense"].fill_null(-1).to_numpy()

        return by_join
    known = ids.to_numpy()
    low, span = int(known[0]), int(known[-1]) - int(known[0]) + 1
    if span <= max(8 * len(known), 1 << 20):  # a table is several times faster than a search
        direct = np.full(span, -1, np.int32)
        direct[known - low] = np.arange(len(known))

        def by_table(column: pl.Series) -> np.ndarray:
            place = column.to_numpy() - low
            # Ids of dropped users may lie outside the table.
            inside = (place >= 0) & (place < span)
            return np.where(inside, direct[np.where(inside, place, 0)], -1)

        return by_table

    def by_search(column: pl.Series) -> np.ndarray:
        values = column.to_numpy()
        at = np.minimum(np.searchsorted(known, values), len(known) - 1)
        return np.where(known[at] == values, at, -1)

    return by_search


def _partition(
    frame: pl.LazyFrame, work: Path, plan: _Plan, time_scale: float, report: Callable
) -> np.ndarray:
    """Pass 2: events as ROWs into one file per shard; returns quantiles of their times."""
    done = work / "quantiles.npy"
    if done.is_file():
        return np.load(done, allow_pickle=False)
    counts = json.loads((work / "counts.json").read_text())
    report(f"pass 2 of 3: partitioning into {plan.num_shards} shards")
    dense_user, dense_item = _lookup(work / "users.parquet"), _lookup(work / "items.parquet")
    whole = float(time_scale).is_integer() and isinstance(counts["first"], int)
    scale = int(time_scale) if whole else time_scale
    first, last = int(counts["first"] // scale), int(counts["last"] // scale)
    width = max(1, -(-(last - first + 1) // _HISTOGRAM_BINS))
    histogram = np.zeros(_HISTOGRAM_BINS, np.int64)
    files = [open(_part(work, s), "wb", buffering=0) for s in range(plan.num_shards)]
    try:
        for batch in _batches(frame):
            rows = np.empty(len(batch), ROW)
            rows["user"] = dense_user(batch["user"])
            rows["item"] = dense_item(batch["item"]) + 1
            rows["timestamp"] = np.floor_divide(batch["timestamp"].to_numpy(), scale)
            rows = rows[rows["user"] >= 0]
            histogram += np.bincount(
                (rows["timestamp"] - first) // width, minlength=_HISTOGRAM_BINS
            )
            shard = np.searchsorted(plan.bounds, rows["user"], side="right") - 1
            order = np.argsort(shard, kind="stable")
            ends = np.cumsum(np.bincount(shard, minlength=plan.num_shards))
            rows = rows[order]
            for s, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                if stop > start:
                    files[s].write(rows[start:stop].tobytes())
    finally:
        for file in files:
            file.close()
    shares = np.linspace(0, histogram.sum(), _QUANTILES)
    quantiles = first + width * np.searchsorted(np.cumsum(histogram), shares, side="left")
    _save(done, np.minimum(quantiles, last))
    return np.load(done, allow_pickle=False)


def _batches(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    yield from frame.collect_batches(
        chunk_size=_BATCH_ROWS, maintain_order=True, engine="streaming"
    )


def _part(work: Path, shard: int) -> Path:
    return work / f"part-{shard:05d}.bin"


def _shards(folder: Path, work: Path, plan: _Plan, report: Callable) -> list[dict[str, Any]]:
    """Pass 3: each part sorted and written as an array_record; finished shards are kept."""
    from array_record.python.array_record_module import ArrayRecordWriter

    shards = []
    for s in range(plan.num_shards):
        begin, end = int(plan.bounds[s]), int(plan.bounds[s + 1])
        target = folder / f"shard-{s:05d}.array_record"
        part = _part(work, s)
        if part.is_file():  # removed after its shard is in place, so a part means work to do
            if s % 8 == 0:
                report(f"pass 3 of 3: shard {s + 1} of {plan.num_shards}")
            rows = np.fromfile(part, ROW)
            # lexsort is stable: ties of (user, time) keep the order of the log.
            rows = rows[np.lexsort((rows["timestamp"], rows["user"]))]
            lengths = plan.lengths[begin:end]
            if len(rows) != lengths.sum():
                raise DataError(
                    f"{part} holds {len(rows)} events, expected {lengths.sum()}: the log changed "
                    f"while it was read. Delete {folder} and run again."
                )
            ends = np.cumsum(lengths)
            items, times = rows["item"].copy(), rows["timestamp"].copy()
            scratch = work / target.name
            # One user per group: a read of one user then unpacks no other.
            writer = ArrayRecordWriter(str(scratch), "group_size:1,uncompressed")
            for user, stop, size in zip(range(begin, end), ends, lengths, strict=True):
                start = stop - size
                writer.write(encode_record(user, items[start:stop], times[start:stop]))
            writer.close()
            os.replace(scratch, target)
            part.unlink()
        shards.append({"file": target.name, "first_user": begin, "users": end - begin}
                      | {"bytes": target.stat().st_size})  # fmt: skip
    return shards


def _finish(
    folder: Path, work: Path, plan: _Plan, shards: list, quantiles: np.ndarray,
    fingerprint: str, name: str,
) -> None:  # fmt: skip
    """Moves the index files into place and writes the manifest, last, which makes it complete."""
    import polars as pl

    _save(folder / "lengths.npy", plan.lengths.astype(np.int32))
    for table in ("users.parquet", "items.parquet"):
        scratch = work / f"{table}.copy"
        shutil.copyfile(work / table, scratch)
        os.replace(scratch, folder / table)
    num_items = pl.scan_parquet(folder / "items.parquet").select(pl.len()).collect().item()
    _write_json(
        folder / MANIFEST,
        {
            "format": FORMAT,
            "name": name,
            "fingerprint": fingerprint,
            "num_users": len(plan.lengths),
            "num_items": num_items,
            "num_events": int(plan.lengths.sum()),
            "shards": shards,
            "timestamp_quantiles": quantiles.tolist(),
        },
    )


def _write_json(path: Path, value: Any) -> None:
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(value))
    os.replace(scratch, path)


def _save(path: Path, array: np.ndarray) -> None:
    scratch = path.with_name(path.name + ".part")
    with open(scratch, "wb") as handle:
        np.save(handle, array)
    os.replace(scratch, path)
