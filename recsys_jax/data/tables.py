"""CSV and Parquet logs with freely named columns, read by polars."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys_jax.data.errors import DataError, suggestion

if TYPE_CHECKING:
    import polars as pl

    from recsys_jax.data.load import Columns

KINDS = ("csv", "parquet")


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turns what polars and the codecs raise while a file is read into a DataError."""
    import polars as pl

    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file."
        ) from error
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        if "utf-8" in reason.lower():
            reason += "; convert the file to UTF-8"
        elif "more fields" in reason:
            reason = "a line has more fields than the header"
        raise DataError(f"{path} cannot be read: {reason}.") from error


def scan_table(
    path: str | Path,
    kind: str,
    separator: str = ",",
    infer_rows: int | None = None,
    key: str = "data.path",
) -> pl.LazyFrame:
    """A lazy frame over a CSV or Parquet file (or a folder or glob of them).

    infer_rows: how many rows decide the types of CSV columns. None takes all, so that a late 'x'
    makes an integer column a text column, which the checks then report with its row; it costs
      one more pass with the file in memory.
    key: the config key that names the file, for messages.

    Raises:
      DataError: no such file, empty file, a file that is not of this kind.
    """
    import polars as pl

    path = Path(path)
    if "*" not in path.name and not path.exists():
        raise DataError(f"There is no file {path}; set --config.{key}.")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    if path.is_dir():
        path = path / f"*.{kind}"
        if not any(path.parent.glob(path.name)):
            raise DataError(f"The folder {path.parent} holds no .{kind} file; set --config.{key}.")
    if kind == "csv" and len(separator) != 1:
        raise DataError(f"data.separator={separator!r} must be a single character.")
    try:
        if kind == "parquet":
            frame = pl.scan_parquet(path)
        else:
            frame = pl.scan_csv(path, separator=separator, infer_schema_length=infer_rows)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as {kind}: {reason}") from error
    return frame


def require_columns(present: Iterable[str], wanted: dict[str, str], source: str) -> None:
    """Raises DataError unless every wanted column (role -> name) is present."""
    present = list(present)
    for role, name in wanted.items():
        if name not in present:
            other = next((s for s in ";\t|," if len(present) == 1 and s in present[0]), None)
            remedy = f"Name it with --config.data.columns.{role}."
            if other:
                remedy = f"Set --config.data.separator={other!r} if that is what divides columns."
            raise DataError(
                f"{source} has no column {name!r} for the {role}; it has {', '.join(present)}."
                f"{suggestion(name, present)} {remedy}"
            )


def read_table_log(
    path: str,
    kind: str,
    columns: Columns,
    separator: str = ",",
    catalogue: str | None = None,
) -> dict[str, Any]:
    """Arguments of `build_log` from a CSV or Parquet file."""
    frame = scan_table(path, kind, separator)
    present = frame.collect_schema().names()
    wanted = {"user": columns.user, "item": columns.item, "timestamp": columns.timestamp}
    wanted |= {k: v for k in ("rating", "behaviour") if (v := getattr(columns, k))}
    require_columns(present, wanted | {f"features ({f})": f for f in columns.features}, path)
    with readable(path):
        data = frame.select(list(dict.fromkeys([*wanted.values(), *columns.features]))).collect()
    parts = {
        "users": id_column(data[columns.user]),
        "items": id_column(data[columns.item]),
        "timestamps": time_column(data[columns.timestamp]),
        "features": {name: numpy_column(data[name]) for name in columns.features},
        "rating": numpy_column(data[columns.rating]) if columns.rating else None,
        "behaviour": numpy_column(data[columns.behaviour]) if columns.behaviour else None,
        "source": str(path),
        "first_row": 2 if kind == "csv" else 1,
        "name": Path(path).stem,
    }
    if catalogue:
        table = scan_table(catalogue, kind, separator, key="data.catalogue")
        wanted = {"item": columns.item} | ({"title": columns.title} if columns.title else {})
        require_columns(table.collect_schema().names(), wanted, catalogue)
        with readable(catalogue):
            table = table.select(list(wanted.values())).collect()
        parts["catalogue"] = id_column(table[columns.item])
        if columns.title:
            parts["item_titles"] = titles(parts["catalogue"], table[columns.title])
    elif columns.title:
        raise DataError(
            f"data.columns.title={columns.title!r} names a column of the catalogue file; set "
            "--config.data.catalogue too."
        )
    return parts


def titles(ids: np.ndarray, column: pl.Series) -> dict[Any, str]:
    """Original id -> title, under the number and under its text (ids may become text)."""
    table = {}
    for key, title in zip(ids.tolist(), column.to_list(), strict=True):
        table[key] = table[str(key)] = "" if title is None else str(title)
    return table


def id_column(series: pl.Series) -> np.ndarray:
    """Ids: integers where every value is one, objects otherwise; nulls stay None."""
    import polars as pl

    if series.dtype.is_integer() and not series.null_count():
        return series.to_numpy()
    if series.dtype == pl.Categorical:
        series = series.cast(pl.String)
    if series.dtype.is_float() and not series.null_count():
        return series.to_numpy()
    return np.array(series.to_list(), dtype=object)


def time_column(series: pl.Series) -> np.ndarray:
    """Times: dates and datetimes become seconds since 1970, numbers stay."""
    import polars as pl

    if series.dtype in (pl.Date, pl.Datetime):
        series = series.cast(pl.Datetime("us")).dt.epoch("s")
    return numpy_column(series)


def numpy_column(series: pl.Series) -> np.ndarray:
    """A column as NumPy: numbers as they are (null becomes NaN), the rest as objects."""
    if series.dtype.is_numeric():
        return series.to_numpy()
    return np.array(series.to_list(), dtype=object)
