"""The user's own text: folders of files, JSON lines, Parquet columns, tensorflow-datasets.

Every reader yields documents lazily and in an order that depends on nothing but names and
contents: files by their path, rows as they stand.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pangu_jax.data.text.document import Document
from pangu_jax.data.text.errors import TextDataError
from pangu_jax.data.text.reading import ReadLog, ReadRules

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".h", ".cc", ".cpp", ".java", ".js", ".ts",
                 ".go", ".rs", ".sh", ".sql", ".tex")  # fmt: skip


def folder_documents(
    path: str | Path,
    domain: str,
    *,
    suffixes: Sequence[str] = TEXT_SUFFIXES,
    source: str = "",
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
) -> Iterator[Document]:
    """One document per file below a folder (or one file); hidden files and folders are left out.

    Raises:
      TextDataError: no such path, no file with these suffixes, a file that is not UTF-8.
    """
    rules, log, path = rules or ReadRules(), log or ReadLog(), Path(path)
    files = _files(path, suffixes, recursive=True)
    root = path if path.is_dir() else path.parent
    for file in files:
        text = rules.accept(rules.decode(file.read_bytes(), str(file), log), str(file), log)
        if text is not None:
            name = file.relative_to(root).as_posix()
            yield Document(text, domain, source or path.name, name)


def jsonl_documents(
    path: str | Path,
    domain: str,
    *,
    field: str = "text",
    source: str = "",
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
) -> Iterator[Document]:
    """One document per line of JSON-lines files (.jsonl, .json, also .gz), from one field.

    Args:
      path: a file, or a folder of such files.
      field: key of the text; 'a.b' reaches into nested objects.

    Raises:
      TextDataError: no such path, a line that is not a JSON object, a field that is absent or
        not text; names file and line.
    """
    rules, log, path = rules or ReadRules(), log or ReadLog(), Path(path)
    for file in _files(path, (".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        opened = gzip.open(file) if file.suffix == ".gz" else open(file, "rb")
        offset = 0
        with opened as handle:
            for number, raw in enumerate(handle, 1):
                where = f"{file} line {number}"
                line = rules.decode(raw, where, log, offset)
                offset += len(raw)
                if line is None or not line.strip():
                    continue
                text = rules.accept(_field(line, field, where), where, log)
                if text is not None:
                    yield Document(text, domain, source or path.name, f"{file.name}:{number}")


def parquet_documents(
    path: str | Path,
    domain: str,
    *,
    column: str = "text",
    source: str = "",
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
) -> Iterator[Document]:
    """One document per row of Parquet files, from one column; rows are read in batches.

    Raises:
      TextDataError: no such path, no such column, a column that is not text.
    """
    import polars as pl

    rules, log, path = rules or ReadRules(), log or ReadLog(), Path(path)
    for file in _files(path, (".parquet",)):
        frame = pl.scan_parquet(file)
        try:
            schema = frame.collect_schema()
        except pl.exceptions.PolarsError as error:
            raise TextDataError(f"{file} cannot be read as Parquet: {error}") from error
        if column not in schema:
            raise TextDataError(
                f"{file} has no column {column!r}; it has {', '.join(schema)}. Set field."
            )
        if schema[column] not in (pl.String, pl.Binary, pl.Categorical):
            raise TextDataError(f"{file}: column {column!r} holds {schema[column]}, not text.")
        row = 0
        batches = frame.select(column).collect_batches(
            chunk_size=10_000, maintain_order=True, engine="streaming"
        )
        for batch in batches:
            for value in batch[column].to_list():
                where = f"{file} row {row}"
                if isinstance(value, bytes):
                    value = rules.decode(value, where, log)
                text = rules.accept("" if value is None else value, where, log)
                if text is not None:
                    yield Document(text, domain, source or path.name, f"{file.name}:{row}")
                row += 1


def tfds_documents(
    name: str,
    domain: str,
    *,
    feature: str = "text",
    split: str = "train",
    source: str = "",
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
    data_dir: str | None = None,
) -> Iterator[Document]:
    """One document per example of a tensorflow-datasets data set, from one text feature.

    No TensorFlow is needed; the data set must be stored as array_record.

    Raises:
      TextDataError: no such feature, or one that is not text.
    """
    import tensorflow_datasets as tfds

    rules, log = rules or ReadRules(), log or ReadLog()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if feature not in builder.info.features:
        raise TextDataError(
            f"{name} has no feature {feature!r}; it has {', '.join(builder.info.features)}. "
            "Set field."
        )
    builder.download_and_prepare()
    version = f"{builder.info.name}-{builder.info.version}"
    for row, example in enumerate(builder.as_data_source(split=split)):
        value, where = example[feature], f"{name} split {split} example {row}"
        if isinstance(value, bytes):
            value = rules.decode(value, where, log)
        elif not isinstance(value, str):
            raise TextDataError(f"{name}: feature {feature!r} holds {type(value)}, not text.")
        text = rules.accept(value, where, log)
        if text is not None:
            yield Document(text, domain, source or version, f"{split}:{row}")


def _files(path: Path, suffixes: Sequence[str], recursive: bool = False) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise TextDataError(f"There is no file or folder {path}; set path.")
    suffixes = tuple(suffixes)
    found = [
        p
        for p in (path.rglob("*") if recursive else path.iterdir())
        if p.name.endswith(suffixes)
        and not any(part.startswith(".") for part in p.relative_to(path).parts)
        and p.is_file()
    ]
    if not found:
        raise TextDataError(
            f"{path} holds no file that ends in {', '.join(suffixes)}; set path or suffixes."
        )
    return sorted(found, key=lambda p: p.relative_to(path).as_posix())


def _field(line: str, field: str, where: str) -> str:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise TextDataError(f"{where} is not JSON: {error}.") from error
    for key in field.split("."):
        if not isinstance(value, dict):
            raise TextDataError(
                f"{where}: {field!r} needs an object, found {type(value).__name__}."
            )
        if key not in value:
            raise TextDataError(
                f"{where} has no field {field!r}; it has {', '.join(value)}. Set field."
            )
        value = value[key]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TextDataError(f"{where}: {field!r} is {type(value).__name__}, not text.")
    return value
