"""Tables with one answer per row: CSV, Parquet, and the raw logs of ASSISTments and EdNet."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.tables import readable, require_columns, scan_table
from recsys_jax.tracing.data.collector import split_concepts
from recsys_jax.tracing.data.log import RawAnswers
from recsys_jax.tracing.data.ragged import Ragged
from recsys_jax.tracing.data.text import decode


@dataclasses.dataclass(frozen=True)
class AnswerColumns:
    """Names of the columns in the user's table; None means that it has no such column.

    Attributes:
      timestamp: numbers, or dates (as text or as a date type), which become milliseconds.
      order: the number of the answer; rows with the same one are one answer.
    """

    student: str = "student"
    question: str | None = "question"
    concepts: str | None = "concepts"
    response: str = "response"
    timestamp: str | None = None
    order: str | None = None


ASSISTMENTS_2009 = AnswerColumns("user_id", "problem_id", "skill_id", "correct", None, "order_id")
ASSISTMENTS_2012 = AnswerColumns("user_id", "problem_id", "skill_id", "correct", "start_time")
_INTEGER = re.compile(r"-?\d+(\.0+)?")


def read_answer_table(
    path: str | Path,
    kind: str,
    columns: AnswerColumns,
    *,
    separator: str = ",",
    encoding: str = "auto",
    concept_separator: str = "_",
    time_scale: float = 1.0,
) -> RawAnswers:
    """A table with one row per answer, or per answer and concept; kind 'csv' or 'parquet'.

    time_scale: timestamps are divided by this and rounded down.

    Raises:
      DataError: missing file or column, a time or order that is no number, bad encoding.
    """
    import polars as pl

    wanted = {
        role: name
        for role in ("student", "question", "concepts", "response", "timestamp", "order")
        if (name := getattr(columns, role))
    }
    if not {"question", "concepts"} & set(wanted):
        raise DataError("data.columns needs a name for question or for concepts.")
    notes: tuple[str, ...] = ()
    if kind == "parquet":
        frame = scan_table(path, kind)
        require_columns(frame.collect_schema().names(), wanted, str(path))
        with readable(path):
            frame = frame.select(list(dict.fromkeys(wanted.values()))).collect()
    else:
        frame, notes = _read_csv(Path(path), wanted, separator, encoding)
    total = frame.height

    def get(role: str):
        return frame[wanted[role]] if role in wanted else None

    responses = get("response")
    if not responses.dtype.is_numeric() and responses.dtype != pl.Boolean:
        responses = responses.cast(pl.String).str.strip_chars()
        lower = responses.str.to_lowercase()
        responses = lower.replace({"true": "1", "false": "0", "na": "", "nan": "", "null": ""})
        numbers = responses.cast(pl.Float64, strict=False)
        _refuse(numbers.is_null() & (responses.fill_null("") != ""), responses, "response", path)
        responses = numbers
    concept = get("concepts")
    if concept is not None and isinstance(concept.dtype, pl.List):
        lists = [v or [] for v in concept.to_list()]
        concepts = Ragged.from_lists(lists, None if any(lists) else object)
    else:
        concepts = split_concepts(
            None if concept is None else _ids(concept), total, concept_separator
        )
    return RawAnswers(
        student=_ids(get("student")),
        question=None if get("question") is None else _ids(get("question")),
        concepts=concepts,
        response=responses.cast(pl.Float64).fill_null(float("nan")).to_numpy(),
        timestamp=_times(get("timestamp"), time_scale, path),
        order=_order(get("order"), path),
        source=str(path),
        name=Path(path).stem,
        notes=notes,
    )


def read_ednet(folder: str | Path, *, num_students: int | None = None, seed: int = 0) -> RawAnswers:
    """EdNet-KT1 as published: KT1/u*.csv and contents/questions.csv (or beside each other).

    num_students: how many students to draw (seeded, from the sorted names); None takes all.
    A response is right when user_answer is the question's correct_answer; answers that are empty
    or to questions that questions.csv does not have are left for `clean` to drop. Tag -1 is none.
    """
    import polars as pl

    folder = Path(folder)
    table = next((p for p in (folder / "contents/questions.csv", folder / "questions.csv")
                  if p.is_file()), None)  # fmt: skip
    users = sorted((folder / "KT1" if (folder / "KT1").is_dir() else folder).glob("u*.csv"))
    if table is None or not users:
        raise DataError(
            f"{folder} must hold contents/questions.csv and KT1/u*.csv; it has "
            f"{'no questions.csv' if table is None else 'no u*.csv'}. Set --config.data.path."
        )
    if num_students is not None and num_students < len(users):
        drawn = np.random.default_rng(seed).permutation(len(users))[:num_students]
        users = [users[i] for i in sorted(drawn)]
    need = ["question_id", "correct_answer", "tags"]
    with readable(table):
        contents = pl.read_csv(table, infer_schema=False)
    require_columns(contents.columns, {name: name for name in need}, str(table))
    frames = []
    need = ["timestamp", "question_id", "user_answer"]
    for file in users:
        with readable(file):
            frame = pl.read_csv(file, infer_schema=False)
        require_columns(frame.columns, {name: name for name in need}, str(file))
        frames.append(frame.select(need).with_columns(student=pl.lit(file.stem)))
    answers = pl.concat(frames).join(
        contents.select("question_id", "correct_answer", "tags"),
        on="question_id", how="left", maintain_order="left",
    )  # fmt: skip
    unknown = answers["correct_answer"].is_null()
    right = (answers["user_answer"] == answers["correct_answer"]).cast(pl.Float64)
    notes = ()
    if unknown.any():
        notes = (f"{int(unknown.sum())} answers are to questions that {table.name} lacks.",)
    return RawAnswers(
        student=np.array(answers["student"].to_list(), object),
        question=np.array(answers["question_id"].to_list(), object),
        concepts=split_concepts(_ids(answers["tags"]), answers.height, ";"),
        response=right.fill_null(float("nan")).to_numpy(),
        timestamp=_times(answers["timestamp"], 1.0, folder),
        source=str(folder),
        name="ednet_kt1",
        notes=notes,
    )


def _read_csv(path: Path, wanted: dict[str, str], separator: str, encoding: str):
    """The wanted columns as text. Well-formed UTF-8 is read straight from disk."""
    import polars as pl

    if len(separator) != 1:
        raise DataError(f"data.separator={separator!r} must be a single character.")
    notes: tuple[str, ...] = ()
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    frames = []
    for file in files:
        if not file.is_file():
            raise DataError(f"There is no file {file}; set --config.data.path.")
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty.")
        columns = list(dict.fromkeys(wanted.values()))
        options = {"separator": separator, "infer_schema": False}
        try:
            if encoding == "latin-1":
                raise UnicodeError
            with file.open("rb") as handle:
                if handle.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                    raise UnicodeError
            require_columns(pl.read_csv(file, n_rows=0, **options).columns, wanted, str(file))
            frame = pl.read_csv(file, columns=columns, **options)
        except (UnicodeError, pl.exceptions.ComputeError):
            text, more = decode(file.read_bytes(), str(file), encoding)
            notes += more
            content = io.BytesIO(text.encode())
            with readable(file):
                frame = pl.read_csv(content, **options)
            require_columns(frame.columns, wanted, str(file))
            frame = frame.select(columns)
        frames.append(frame)
    if not frames:
        raise DataError(f"The folder {path} holds no .csv file; set --config.data.path.")
    return pl.concat(frames), notes


def _ids(series) -> np.ndarray:
    """Ids as int64 or text; '12.0' is 12 where all of a column are whole numbers."""
    if series.dtype.is_integer() and not series.null_count():
        return series.to_numpy().astype(np.int64)
    texts = ["" if v is None else str(v).strip() for v in series.to_list()]
    distinct = {t for t in set(texts) if t and t.lower() not in ("nan", "na", "null")}
    if any("." in t for t in distinct) and all(_INTEGER.fullmatch(t) for t in distinct):
        texts = [t.split(".")[0] for t in texts]
    return np.array(texts, object)


def _times(series, scale: float, path) -> np.ndarray | None:
    import polars as pl

    if series is None:
        return None
    if not scale > 0:
        raise DataError(f"data.time_scale must be positive, got {scale}.")
    if series.dtype in (pl.Date, pl.Datetime):
        numbers = series.cast(pl.Datetime("us")).dt.epoch("ms")
    elif series.dtype.is_numeric():
        numbers = series
    else:
        text = series.str.strip_chars()
        numbers = text.cast(pl.Int64, strict=False)
        if numbers.null_count():
            numbers = text.cast(pl.Float64, strict=False)
        if numbers.null_count():
            try:
                dates = text.str.to_datetime(strict=False, time_unit="us")
            except pl.exceptions.PolarsError:
                dates = pl.Series([None] * len(text), dtype=pl.Datetime("us"))
            numbers = dates.dt.epoch("ms")
    _refuse(numbers.is_null(), series, "timestamp", path)
    if numbers.dtype.is_integer() and float(scale).is_integer():
        return numbers.cast(pl.Int64).to_numpy() // int(scale)
    values = numbers.cast(pl.Float64).to_numpy()
    _refuse(pl.Series(~np.isfinite(values)), series, "timestamp", path)
    return np.floor(values / scale).astype(np.int64)


def _order(series, path) -> np.ndarray | None:
    import polars as pl

    if series is None:
        return None
    numbers = series.cast(pl.Float64, strict=False)
    whole = series.cast(pl.Int64, strict=False)
    if whole.null_count() and not numbers.null_count():
        whole = numbers.cast(pl.Int64, strict=False)
    _refuse(whole.is_null(), series, "order", path)
    return whole.to_numpy()


def _refuse(bad, series, what: str, path) -> None:
    if bad.any():
        row = int(bad.arg_max())
        raise DataError(
            f"{path} data row {row + 1}: {what} {series[row]!r} is not a number"
            f"{' or a date' if what == 'timestamp' else ''} ({int(bad.sum())} such rows). "
            f"Correct them, or name another column with --config.data.columns.{what}."
        )
