"""pyKT's CSV: one row per sequence, whole columns of answers in quoted lists."""

from __future__ import annotations

import io
import json
from pathlib import Path

from recsys_jax.data.errors import DataError
from recsys_jax.data.tables import readable, require_columns
from recsys_jax.tracing.data.collector import Collector
from recsys_jax.tracing.data.log import RawAnswers
from recsys_jax.tracing.data.text import fields, number, read_text

COLUMNS = ("fold", "uid", "questions", "concepts", "responses", "timestamps", "selectmasks",
           "is_repeat")  # fmt: skip


def read_pykt(path: str | Path, *, encoding: str = "auto") -> RawAnswers:
    """Columns uid, responses, and concepts or questions; optional fold, timestamps, selectmasks,
    is_repeat. A folder is read as its train_valid*.csv and test*.csv (first of each by name).

    Steps whose select mask is not 1, or, without masks, whose response is the padding -1, are
    left out, so that files cut into (overlapping) windows give each answer once. Rows of one uid
    go together in file order. is_repeat = 1 marks a further concept of the answer before it.
    keyid2idx.json beside the file turns pyKT's numbers back into original ids.

    Raises:
      DataError: a column is missing, lists of different lengths, a response that is no number.
    """
    path = Path(path)
    collector = Collector(str(path))
    folder = path if path.is_dir() else path.parent
    originals = _originals(folder / "keyid2idx.json")
    answers: dict[str, int] = {}
    for file in _files(path):
        text, notes = read_text(file, encoding)
        collector.notes += notes
        for place, row in enumerate(_rows(text, file), 2):
            where = f"{file} row {place}"
            columns = {key: fields(row[key]) for key in COLUMNS[2:] if row.get(key) is not None}
            responses = columns.pop("responses")
            for name, column in columns.items():
                if len(column) != len(responses):
                    raise DataError(
                        f"{where}: {len(column)} {name} but {len(responses)} responses."
                    )
            masks = columns.pop("selectmasks", None)
            kept = [
                t for t, r in enumerate(responses)
                if (r not in ("-1", "-1.0") if masks is None else masks[t] in ("1", "1.0"))
            ]  # fmt: skip
            picked = {key: [column[t] for t in kept] for key, column in columns.items()}
            order = None
            if "is_repeat" in picked:
                count, order = answers.get(row["uid"], -1), []
                for repeat in picked["is_repeat"]:
                    # The first row of a part cut inside an answer goes on with that answer.
                    count = max(0, count + (repeat not in ("1", "1.0")))
                    order.append(count)
                answers[row["uid"]] = count
            times = picked.get("timestamps")
            collector.add(
                originals.get("uid", {}).get(row["uid"], row["uid"]),
                [number(responses[t], where) for t in kept],
                question=_mapped(picked.get("questions"), originals.get("questions")),
                concepts=_mapped(picked.get("concepts"), originals.get("concepts")),
                timestamp=None if times is None else [_int(v, where) for v in times],
                order=order,
                fold=None if row.get("fold") is None else _int(row["fold"], where),
                where=where,
            )
    return collector.finish(name=path.stem if path.suffix else path.name)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [next(iter(sorted(path.glob(p))), None) for p in ("train_valid*.csv", "test*.csv")]
    files = [file for file in found if file is not None]
    if not files:
        raise DataError(
            f"The folder {path} holds neither train_valid*.csv nor test*.csv; name the file with "
            "--config.data.path."
        )
    return files


def _rows(text: str, file: Path) -> list[dict[str, str]]:
    import polars as pl

    with readable(file):
        frame = pl.read_csv(io.BytesIO(text.encode()), infer_schema=False)
    need = {"student": "uid", "response": "responses"}
    require_columns(frame.columns, need, str(file))
    if not {"questions", "concepts"} & set(frame.columns):
        raise DataError(f"{file} has neither a column 'questions' nor 'concepts'.")
    frame = frame.select([c for c in COLUMNS if c in frame.columns])
    return frame.with_columns(pl.col("responses").fill_null("")).to_dicts()


def _originals(path: Path) -> dict[str, dict[str, str]]:
    """name -> pyKT's number -> original id."""
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    return {
        name: {str(index): str(key) for key, index in entries.items()}
        for name, entries in table.items()
        if isinstance(entries, dict)
    }


def _mapped(column: list[str] | None, table: dict[str, str] | None) -> list[str] | None:
    if column is None or not table:
        return column
    return ["_".join(table.get(part, part) for part in value.split("_")) for value in column]


def _int(value: str, where: str) -> int:
    try:
        return int(value)
    except ValueError:
        try:
            return int(float(value))
        except ValueError:
            raise DataError(f"{where}: {value!r} is not a whole number.") from None
