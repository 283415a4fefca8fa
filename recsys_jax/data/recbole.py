"""RecBole atomic files: tab-separated, the header names each column as `name:type`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys_jax.data.errors import DataError, suggestion
from recsys_jax.data.tables import id_column, numpy_column, readable, require_columns, titles

if TYPE_CHECKING:
    import polars as pl

    from recsys_jax.data.load import Columns

TYPES = ("token", "token_seq", "float", "float_seq")


def read_atomic(path: str | Path) -> pl.DataFrame:
    """One atomic file (.inter, .item, .user) as a frame with plain column names.

    token columns whose every value is a whole number written plainly (no sign, no leading zero)
    become Int64; float columns become Float64; sequences stay strings. Files are UTF-8.

    Raises:
      DataError: no such file, empty file, malformed header, a value that is not a number.
    """
    import polars as pl

    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {path}; set --config.data.path.")
    with readable(path), open(path, encoding="utf-8") as handle:
        header = handle.readline().rstrip("\r\n")
    if not header:
        raise DataError(f"{path} is empty: the first line must name the columns as name:type.")
    columns = [field.strip().rpartition(":") for field in header.split("\t")]
    for name, _, kind in columns:
        if not name or kind not in TYPES:
            raise DataError(
                f"{path} is not a RecBole atomic file: header field {(name + ':' + kind)!r} must "
                f"be name:type with type one of {', '.join(TYPES)}." + suggestion(kind, TYPES)
            )
    frame = None
    if path.stat().st_size > len(header.encode()) + 2:
        with readable(path):
            frame = pl.read_csv(
                path, separator="\t", has_header=False, skip_rows=1, quote_char=None,
                new_columns=[name for name, _, _ in columns], infer_schema=False,
                raise_if_empty=False, truncate_ragged_lines=False,
            )  # fmt: skip
    if frame is None or frame.is_empty():
        return pl.DataFrame(schema={name: pl.String for name, _, _ in columns})
    for name, _, kind in columns:
        if kind == "float":
            frame = frame.with_columns(_number(frame[name], path))
        elif kind == "token":
            if _is_plain(frame[name]):
                frame = frame.with_columns(pl.col(name).cast(pl.Int64))
    return frame


def _is_plain(column: pl.Series) -> bool:
    """Whether every text is a whole number that survives the way to int64 and back."""
    return not column.null_count() and column.str.contains(r"^(0|[1-9][0-9]{0,17})$").all()


def plain_integers(column: pl.Series) -> np.ndarray:
    """Text ids as int64 where all are plain whole numbers, as objects otherwise."""
    if column.dtype.is_integer() or not _is_plain(column):
        return id_column(column)
    return column.cast(int).to_numpy()


def _number(column: pl.Series, path: Path) -> pl.Series:
    import polars as pl

    parsed = column.cast(pl.Float64, strict=False)
    bad = parsed.is_null() & column.is_not_null()
    if bad.any():
        row = bad.arg_max()
        raise DataError(
            f"{path} row {row + 2}: {column.name} {column[row]!r} is not a number "
            f"({bad.sum()} such rows)."
        )
    return parsed


def read_recbole(path: str | Path, columns: Columns) -> dict[str, Any]:
    """Arguments of `build_log` from an .inter file and the .item and .user files beside it.

    The title is the first token_seq column of the .item file unless `columns.title` names one.
    """
    path = _inter_file(Path(path))
    inter = read_atomic(path)
    wanted = {"user": columns.user, "item": columns.item, "timestamp": columns.timestamp}
    wanted |= {k: v for k in ("rating", "behaviour") if (v := getattr(columns, k))}
    require_columns(inter.columns, wanted | {f"features ({f})": f for f in columns.features}, path)
    rating = columns.rating or ("rating" if "rating" in inter.columns else None)
    parts = {
        "users": id_column(inter[columns.user]),
        "items": id_column(inter[columns.item]),
        "timestamps": numpy_column(inter[columns.timestamp]),
        "rating": numpy_column(inter[rating]) if rating else None,
        "behaviour": numpy_column(inter[columns.behaviour]) if columns.behaviour else None,
        "features": {name: numpy_column(inter[name]) for name in columns.features},
        "source": str(path),
        "first_row": 2,
        "name": path.stem,
    }
    beside = path.with_suffix(".item")
    if beside.is_file():
        item = read_atomic(beside)
        require_columns(item.columns, {"item": columns.item}, str(beside))
        ids = id_column(item[columns.item])
        parts["catalogue"] = ids
        others = [name for name in item.columns if name != columns.item]
        title = columns.title or next((n for n in others if "title" in n or "name" in n), None)
        if title:
            require_columns(item.columns, {"title": title}, str(beside))
            parts["item_titles"] = titles(ids, item[title])
        parts["item_features"] = {
            name: attribute_table(ids, item[name]) for name in others if name != title
        }
    beside = path.with_suffix(".user")
    if beside.is_file():
        user = read_atomic(beside)
        require_columns(user.columns, {"user": columns.user}, str(beside))
        ids = id_column(user[columns.user])
        parts["user_features"] = {
            name: attribute_table(ids, user[name]) for name in user.columns if name != columns.user
        }
    return parts


def attribute_table(ids: np.ndarray, column: pl.Series) -> dict[Any, Any]:
    """Original id -> value, under the number and under its text (ids may become text)."""
    table = {}
    for key, value in zip(ids.tolist(), column.to_list(), strict=True):
        table[key] = table[str(key)] = value
    return table


def _inter_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.inter"))
    if len(found) != 1:
        raise DataError(
            f"The folder {path} holds {len(found)} .inter files; name one with --config.data.path."
        )
    return found[0]
