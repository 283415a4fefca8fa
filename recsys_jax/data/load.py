"""The one door to every source of interactions: `load_log(config)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from recsys_jax.data.errors import DataError, suggestion
from recsys_jax.data.schema import InteractionLog, build_log

SOURCES = ("movielens_100k", "recbole", "csv", "parquet", "s3rec", "tfds:<name>")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns in the user's file; None means the file has no such column."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    rating: str | None = None
    behaviour: str | None = None
    title: str | None = None
    features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where interactions come from and what is kept of them.

    Attributes:
      source: 'movielens_100k' | 'recbole' | 'csv' | 'parquet' | 's3rec' | 'tfds:<name>'.
      path: the file (recbole: the .inter file or its folder); unused by the built-in sets.
      catalogue: file of the same kind with all items (column `columns.item`, optional
        `columns.title`); recbole finds the .item file beside the .inter file by itself.
      columns: column names, see Columns.
      separator: field separator of CSV files.
      time_scale: timestamps are divided by this, rounded down.
      min_rating: drop events rated lower.
      min_user_events, min_item_events: k-core thresholds, 0 for none.
      shards: folder for a CSV or Parquet log that does not fit in memory: it is brought into
        array_record shards there, once, in bounded memory, and trained on from disk.
    """

    source: str = "movielens_100k"
    path: str | None = None
    catalogue: str | None = None
    columns: Columns = Columns()
    separator: str = ","
    time_scale: float = 1.0
    min_rating: float | None = None
    min_user_events: int = 0
    min_item_events: int = 0
    shards: str | None = None


def load_log(config: LogConfig | Mapping[str, Any] | None = None) -> InteractionLog:
    """Reads, checks and filters the interactions that a config names.

    Raises:
      DataError: unknown source or key, missing path or column, unusable values (see build_log).
      pangu_jax.data.WheelError: MovieLens-100K can neither be found in the cache nor fetched.
    """
    config = _as_config(config)
    reader, argument = _reader(config.source)
    parts = reader(config, argument)
    return build_log(
        **parts,
        time_scale=config.time_scale,
        min_rating=config.min_rating,
        min_user_events=config.min_user_events,
        min_item_events=config.min_item_events,
    )


def _as_config(config: LogConfig | Mapping[str, Any] | None) -> LogConfig:
    if isinstance(config, LogConfig):
        return config
    values = dict(config.items()) if config else {}
    columns = values.get("columns") or {}
    if not isinstance(columns, Columns):
        columns = dict(columns.items())
        _known(columns, Columns, "data.columns")
        columns = Columns(**columns)
    _known(values, LogConfig, "data")
    return LogConfig(**(values | {"columns": columns}))


def _known(values: Mapping[str, Any], kind: type, where: str) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            raise DataError(
                f"Unknown config key {where}.{key}; known are {', '.join(names)}."
                + suggestion(key, names)
            )


def _reader(source: str):
    if source.startswith("tfds:"):
        return _tfds, source.removeprefix("tfds:")
    readers = {
        "movielens_100k": _movielens,
        "recbole": _recbole,
        "csv": _table,
        "parquet": _table,
        "s3rec": _s3rec,
    }
    if source not in readers:
        raise DataError(
            f"data.source={source!r} is unknown; allowed are {', '.join(SOURCES)}."
            + suggestion(source, readers)
        )
    return readers[source], source


def _path(config: LogConfig) -> str:
    if not config.path:
        raise DataError(f"data.source={config.source!r} needs a file: set --config.data.path.")
    return config.path


def _movielens(config: LogConfig, _: str) -> dict[str, Any]:
    from recsys_jax.data import tfds_source

    return tfds_source.movielens_100k()


def _tfds(config: LogConfig, name: str) -> dict[str, Any]:
    from recsys_jax.data import tfds_source

    return tfds_source.ratings(name)


def _recbole(config: LogConfig, _: str) -> dict[str, Any]:
    from recsys_jax.data.recbole import read_recbole

    return read_recbole(_path(config), config.columns)


def _table(config: LogConfig, kind: str) -> dict[str, Any]:
    from recsys_jax.data.tables import read_table_log

    return read_table_log(
        _path(config), kind, config.columns, config.separator, catalogue=config.catalogue
    )


def _s3rec(config: LogConfig, _: str) -> dict[str, Any]:
    from recsys_jax.data.s3rec import read_s3rec

    users, items = read_s3rec(_path(config))
    return {"users": users, "items": items, "timestamps": None, "source": _path(config)} | {
        "name": str(_path(config)).rsplit("/", 1)[-1].removesuffix(".txt")
    }
