"""Data sets that come through tensorflow-datasets, ours and theirs, without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.data.wheel import WheelError, cache_dir, check_cached, locked
from recsys_jax.data.errors import DataError


def _data_dir() -> Path:
    return cache_dir() / "tfds"


def _prepare(builder: Any) -> None:
    import tensorflow_datasets as tfds

    # Preparing prints progress bars and a hint to load through TensorFlow; neither helps here.
    level = logging.getLogger("absl").level
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        _data_dir().mkdir(parents=True, exist_ok=True)
        # Processes started together on one machine would otherwise prepare the same folder.
        with locked(_data_dir() / f"{builder.name}.lock"):
            builder.download_and_prepare(file_format="array_record")
    finally:
        logging.getLogger("absl").setLevel(level)


def movielens_100k() -> dict[str, Any]:
    """Arguments of `build_log` for MovieLens-100K, prepared in the cache folder on first use."""
    from recsys_jax.data.movielens import CITATION, LICENCE, WHEEL, MovielensHundredK

    check_cached(WHEEL)
    builder = MovielensHundredK(data_dir=_data_dir(), file_format="array_record")
    _prepare(builder)
    people = list(builder.as_data_source("users"))
    films = list(builder.as_data_source("films"))
    order = np.argsort(np.concatenate([p["rows"] for p in people]))

    def column(name: str) -> np.ndarray:
        return np.concatenate([p[name] for p in people])[order]

    def table(records: list, name: str) -> dict[int, Any]:
        values = ((int(r["id"]), r[name]) for r in records)
        return {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in values}

    years = table(films, "year")
    return {
        "users": np.concatenate([np.full(len(p["rows"]), p["id"], np.int64) for p in people])[
            order
        ],
        "items": column("items"),
        "timestamps": column("timestamps"),
        "rating": column("ratings"),
        "catalogue": np.array([int(f["id"]) for f in films], np.int64),
        "item_titles": {
            key: f"{title} ({years[key]})" if years[key] else title
            for key, title in table(films, "title").items()
        },
        "item_features": {"genres": table(films, "genres"), "year": years},
        "user_features": {k: table(people, k) for k in ("age", "gender", "occupation", "zip_code")},
        "source": "MovieLens-100K",
        "name": "MovieLens-100K",
        "licence": LICENCE,
        "citation": CITATION,
    }


def _register(name: str) -> None:
    """Makes tfds' own rating sets known and readable where TensorFlow is not installed.

    Without TensorFlow, tfds skips its built-in sets unless their module is imported, and its
    MovieLens parser opens files through `tf.io.gfile`, for which plain `open` does.
    """
    if name.split("/")[0].split(":")[0] != "movielens":
        return
    with contextlib.suppress(ImportError):
        import tensorflow_datasets.structured.movielens  # noqa: F401
        from tensorflow_datasets.structured import movielens_parsing

        if importlib.util.find_spec("tensorflow") is None:
            gfile = types.SimpleNamespace(GFile=open)
            movielens_parsing.tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile))


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """tfds tries a download eleven times with growing pauses; without a network that is minutes."""
    from tensorflow_datasets.core.download import downloader

    before = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = 2
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


_FIELDS = {
    "users": ("user_id",),
    "items": ("movie_id", "item_id", "product_id"),
    "timestamps": ("timestamp",),
    "rating": ("user_rating", "rating"),
}


def ratings(name: str) -> dict[str, Any]:
    """Arguments of `build_log` for a rating data set of tfds, e.g. 'movielens/1m-ratings'.

    The columns are copied once to a Parquet file in the cache folder, because a million records
    take minutes to decode one by one.

    Raises:
      DataError: unknown data set, no network and nothing prepared, no user/item/time features.
    """
    import polars as pl
    import tensorflow_datasets as tfds

    _register(name)
    table = _data_dir() / "tables" / f"{name.replace('/', '-').replace(':', '-')}.parquet"
    if not table.is_file():
        try:
            builder = tfds.builder(
                name, data_dir=_data_dir(), file_format="array_record", try_gcs=False
            )
            with _few_retries():
                _prepare(builder)
        except tfds.core.registered.DatasetNotFoundError as error:
            raise DataError(
                f"tensorflow-datasets has no data set {name!r}; try 'movielens/1m-ratings', or see "
                "its catalogue."
            ) from error
        except WheelError:
            raise
        except Exception as error:  # tfds raises whatever its download library raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{name!r} is not prepared in {_data_dir()} and could not be downloaded "
                f"({type(error).__name__}: {reason[:200]}). It needs a network once. Without one "
                "use --config.data.source=movielens_100k, or fetch the files by hand and read "
                "them with --config.data.source=csv."
            ) from error
        source = builder.as_data_source("train")
        columns = _columns(name, list(builder.info.features))
        if "movie_title" in builder.info.features:
            columns["title"] = "movie_title"
        rows = [[record[c] for c in columns.values()] for record in source]
        data = {
            role: [v.decode() if isinstance(v, bytes) else v for v in values]
            for role, values in zip(columns, zip(*rows, strict=True), strict=True)
        }
        licence = builder.info.as_proto.redistribution_info.license
        about = {
            "licence": licence or f"{name}: terms of use at {builder.info.homepage}",
            "citation": builder.info.citation or "",
        }
        frame = pl.DataFrame(data).with_columns(
            pl.lit(text).alias(key) for key, text in about.items()
        )
        table.parent.mkdir(parents=True, exist_ok=True)
        scratch = table.with_suffix(".part")
        frame.write_parquet(scratch)
        scratch.replace(table)
    frame = pl.read_parquet(table)
    from recsys_jax.data.recbole import plain_integers
    from recsys_jax.data.tables import titles

    parts = {
        "users": plain_integers(frame["users"]),
        "items": plain_integers(frame["items"]),
        "timestamps": frame["timestamps"].to_numpy(),
        "rating": frame["rating"].to_numpy() if "rating" in frame.columns else None,
    }
    if "title" in frame.columns:
        parts["item_titles"] = titles(parts["items"], frame["title"])
    return parts | {
        "source": name, "name": name,
        "licence": frame["licence"][0], "citation": frame["citation"][0],
    }  # fmt: skip


def _columns(name: str, features: list[str]) -> dict[str, str]:
    found = {
        role: next((n for n in names if n in features), None) for role, names in _FIELDS.items()
    }
    for role in ("users", "items", "timestamps"):
        if found[role] is None:
            raise DataError(
                f"{name!r} has no feature for the {role} (looked for {', '.join(_FIELDS[role])}); "
                f"it has {', '.join(features)}. Use a data set of ratings, "
                "e.g. tfds:movielens/1m-ratings."
            )
    return {role: feature for role, feature in found.items() if feature}
