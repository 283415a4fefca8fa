"""The log that out-of-core preprocessing reads: its files, its three columns, their types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recsys_jax.data.errors import DataError
from recsys_jax.data.tables import require_columns, scan_table

if TYPE_CHECKING:
    import polars as pl

    from recsys_jax.data.load import Columns


def files_of(path: Path) -> list[Path]:
    """The files of a folder, a glob or a single path; DataError where there is none."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    found = sorted(path.parent.glob(path.name))
    if not found:
        raise DataError(f"There is no file {path}; set --config.data.path.")
    return found


def open_columns(
    path: Path, kind: str, separator: str, columns: Columns
) -> tuple[pl.LazyFrame, int]:
    """The three columns by their roles, and the number of the first row in messages."""
    frame = scan_table(path, kind, separator, infer_rows=10_000)
    first_row = 2 if kind == "csv" else 1
    wanted = {role: getattr(columns, role) for role in ("user", "item", "timestamp")}
    require_columns(frame.collect_schema().names(), wanted, str(path))
    return _typed(frame.select(**wanted), str(path), first_row), first_row


def _typed(frame: pl.LazyFrame, source: str, first_row: int) -> pl.LazyFrame:
    """Ids as Int64 or String, times as Int64 or Float64."""
    import polars as pl

    schema = frame.collect_schema()
    casts = []
    for role in ("user", "item"):
        casts.append(pl.col(role).cast(pl.Int64 if schema[role].is_integer() else pl.String))
    time = schema["timestamp"]
    if time in (pl.Date, pl.Datetime):
        casts.append(pl.col("timestamp").cast(pl.Datetime("us")).dt.epoch("s"))
    elif time.is_integer():
        casts.append(pl.col("timestamp").cast(pl.Int64))
    elif time.is_float():
        casts.append(pl.col("timestamp").cast(pl.Float64))
    else:
        number = pl.col("timestamp").cast(pl.Float64, strict=False)
        bad = frame.select("timestamp").with_row_index("row").filter(number.is_null())
        row = bad.head(1).collect(engine="streaming")
        if len(row):
            raise DataError(
                f"{source} row {row['row'][0] + first_row}: timestamp {row['timestamp'][0]!r} is "
                "not a number. Times must be numbers >= 0."
            )
        casts.append(number)
    return frame.with_columns(casts)
