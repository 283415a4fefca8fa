"""Records out of JSON-lines and Parquet files, one after another, each with where it stands."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pangu_jax.training.sft.errors import FineTuneError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


def read_records(path: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """('file:line', record) of a file, or of all files with a known suffix below a folder.

    JSON lines count from 1, rows of Parquet from 0. A .json file may be one list of records too.

    Raises:
      FineTuneError: no such path, no file with a known suffix, a line that is no JSON object,
        text that is not UTF-8, a Parquet file that cannot be read.
    """
    for file in _files(Path(path)):
        yield from _parquet(file) if file.name.endswith(".parquet") else _json_lines(file)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
        if found:
            return found
        raise FineTuneError(f"The folder {path} holds no file with {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise FineTuneError(
            f"There is no file or folder {path}; set --config.data.train (and .held_out) to files "
            f"of {', '.join(SUFFIXES)}."
        )
    if not path.name.endswith(SUFFIXES):
        raise FineTuneError(f"{path} is of no known kind; known are {', '.join(SUFFIXES)}.")
    return [path]


def _json_lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    opened = gzip.open(file) if file.suffix == ".gz" else open(file, "rb")
    with opened as handle:
        if not file.name.endswith((".jsonl", ".jsonl.gz")):
            head = handle.read(1 << 10).lstrip()[:1]
            handle.seek(0)
            if head == b"[":
                yield from _json_list(file, handle.read())
                return
        for number, raw in enumerate(handle, 1):
            where = f"{file}:{number}"
            if raw.strip():
                yield where, _object(_parse(raw, where), where)


def _json_list(file: Path, raw: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, value in enumerate(_parse(raw, str(file))):
        where = f"{file}[{number}]"
        yield where, _object(value, where)


def _parse(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FineTuneError(f"{where} is not UTF-8 ({error}); convert the file.") from error
    except json.JSONDecodeError as error:
        raise FineTuneError(f"{where} is not JSON ({error}).") from error


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise FineTuneError(f"{where} is a {type(value).__name__}; an object is needed.")
    return value


def _parquet(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import polars as pl

    try:
        frame = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FineTuneError(f"{file} cannot be read as Parquet: {error}") from error
    for row, record in enumerate(frame.iter_rows(named=True)):
        yield f"{file}:row {row}", record
