"""An AnswerLog in the field's formats, with original ids, for other tools to read.

What a format cannot hold is not written: three lines know no questions, four lines no times.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.tracing.data.lines import LAYOUTS
from recsys_jax.tracing.data.log import AnswerLog


def write_lines(log: AnswerLog, path: str | Path, layout: str) -> None:
    """Writes 'three_line', 'four_line' or 'six_line'; sets of concepts as '3_17'.

    Raises:
      DataError: unknown layout.
    """
    if layout not in LAYOUTS:
        raise DataError(f"layout={layout!r} is unknown; allowed are {', '.join(LAYOUTS)}.")
    columns = _text_columns(log)
    lines = []
    for number, (begin, end) in enumerate(zip(log.offsets, log.offsets[1:], strict=False)):
        name = str(log.student_ids[number])
        count = int(end - begin)
        lines.append({"four_line": f"{number},{name}", "six_line": f"{name},{count}"}.get(
            layout, str(count)))  # fmt: skip
        for column in LAYOUTS[layout]:
            values = columns.get(column)
            lines.append("NA" if values is None else ",".join(values(begin, end)))
    _write(path, "\n".join(lines) + "\n")


def write_pykt(log: AnswerLog, path: str | Path) -> None:
    """Writes pyKT's CSV, one row per student, unpadded; fold is 0 where the log has none."""
    columns = _text_columns(log)
    names = {"question": "questions", "concepts": "concepts", "response": "responses",
             "timestamp": "timestamps"}  # fmt: skip
    names = {key: name for key, name in names.items() if columns.get(key) is not None}
    lines = [",".join(["fold", "uid", *names.values()])]
    for number, (begin, end) in enumerate(zip(log.offsets, log.offsets[1:], strict=False)):
        fold = 0 if log.fold is None else int(log.fold[number])
        row = [str(fold), _quoted(str(log.student_ids[number]))]
        row += [_quoted(",".join(columns[key](begin, end))) for key in names]
        lines.append(",".join(row))
    _write(path, "\n".join(lines) + "\n")


def write_table(log: AnswerLog, path: str | Path) -> None:
    """Writes a Parquet or CSV file (by its suffix) with the columns of AnswerColumns' defaults."""
    import polars as pl

    path = Path(path)
    columns = _text_columns(log)
    data = {"student": log.student_ids[log.student].tolist()}
    if log.has_questions:
        data["question"] = log.question_ids[log.question].tolist()
    data["concepts"] = columns["concepts"](0, len(log))
    data["response"] = log.response
    if log.timestamp is not None:
        data["timestamp"] = log.timestamp
    frame = pl.DataFrame(data)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path)


def _text_columns(log: AnswerLog) -> dict[str, Callable[[int, int], list[str]] | None]:
    """Column -> function of (begin, end) that gives the rows' texts."""
    questions = log.question_ids.astype(str)
    concepts = log.concept_ids.astype(str)

    def plain(values: np.ndarray):
        return lambda begin, end: [str(v) for v in values[begin:end].tolist()]

    return {
        "question": (lambda b, e: questions[log.question[b:e]].tolist())
        if log.has_questions
        else None,
        "concepts": lambda b, e: ["_".join(concepts[log.concepts[i]]) for i in range(b, e)],
        "response": plain(log.response),
        "timestamp": None if log.timestamp is None else plain(log.timestamp),
        "use_time": None,
    }


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _write(path: str | Path, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
