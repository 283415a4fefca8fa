"""Formats with a few lines per student: three, four and six lines, AKT and DKVMN, PEBG, HAKT.

A header line, then one line per column with the student's whole sequence, divided by commas:

  three_line  header, concepts, responses             (DKVMN, DKT; header: the length)
  four_line   header, questions, concepts, responses  (AKT's *_pid; header: 'index,id' or length)
  six_line    'id,length', questions, concepts, responses, timestamps, use times  (pyKT's
              data.txt; 'NA' for a column that is not there; concepts of one answer as '3_17')
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from recsys_jax.data.errors import DataError
from recsys_jax.tracing.data.collector import Collector
from recsys_jax.tracing.data.log import TEST_FOLD, RawAnswers
from recsys_jax.tracing.data.text import fields, number, read_literal, read_text

LAYOUTS = {
    "three_line": ("concepts", "response"),
    "four_line": ("question", "concepts", "response"),
    "six_line": ("question", "concepts", "response", "timestamp", "use_time"),
}


def read_lines(
    path: str | Path, layout: str, *, encoding: str = "auto", concept_separator: str = "_"
) -> RawAnswers:
    """A file or a folder of files (*.csv, *.txt) in one of LAYOUTS.

    Files of a folder whose names end in test1, test2, ... (as AKT's five folds) become folds 1,
    2, ...; names with train and test become folds 0 and -1; else there is no division. Where the
    header is only a length, students are named after the file and their place in it.

    Raises:
      DataError: lines that do not make whole students or do not fit each other, see Collector.
    """
    names = LAYOUTS[layout]
    files = _files(path)
    collector = Collector(str(path), concept_separator)
    folds = _folds(files)
    for file in files:
        text, notes = read_text(file, encoding)
        collector.notes += notes
        for place, header, columns in _groups(text, len(names) + 1, str(file)):
            where = f"{file} lines {place}-{place + len(names)}"
            values = dict(zip(names, columns, strict=True))
            responses = [number(v, where) for v in values["response"]]
            given = {
                key: _column(values.get(key), len(responses), where)
                for key in ("question", "concepts", "timestamp")
            }
            if given["timestamp"] is not None:
                given["timestamp"] = _times(given["timestamp"], where)
            student = _student(header, file, place, len(names) + 1, layout, len(files) > 1)
            collector.add(student, responses, **given, fold=folds.get(file), where=where)
    return collector.finish(name=Path(path).stem)


def read_pebg(folder: str | Path) -> RawAnswers:
    """PEBG's EdNet: data.txt (length, joint skills, questions, responses as Python lists),
    pro_skill_dict.txt (question -> 'tag;tag'), pro_id_dict.txt (question -> its number).

    Students have no ids there and are named by their place, from 1.
    """
    folder = Path(folder)
    text, notes = read_text(folder / "data.txt")
    tags = read_literal(folder / "pro_skill_dict.txt")
    ids = {number: name for name, number in read_literal(folder / "pro_id_dict.txt").items()}
    collector = Collector(str(folder), ";")
    collector.notes = notes
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) % 4:
        raise DataError(f"{folder / 'data.txt'}: {len(lines)} lines are not 4 per student.")
    missing = 0
    for place in range(0, len(lines), 4):
        where = f"{folder / 'data.txt'} lines {place + 1}-{place + 4}"
        _, _, questions, responses = (_list(line, where) for line in lines[place : place + 4])
        names = [ids.get(q, f"#{q}") for q in questions]
        missing += sum(q not in ids for q in questions)
        concepts = [tags.get(name, "") for name in names]
        collector.add(
            str(place // 4 + 1), responses, question=names, concepts=concepts, where=where
        )
    if missing:
        collector.notes += (f"{missing} answers are to questions that pro_id_dict.txt lacks.",)
    return collector.finish(name="ednet_pebg")


def read_hakt(folder: str | Path) -> RawAnswers:
    """HAKT's ASSISTments 2009: train_test/{train,test}_{question,skill}.txt and encode/*.txt.

    Skills such as '97_99_105' are sets. The fixed split is fold 0 (train) and -1 (test). The list
    of test users is longer than the sequences, so test students are named by their place.
    """
    folder = Path(folder)
    questions = {v: str(k) for k, v in read_literal(folder / "encode/question_id_dict.txt").items()}
    skills = {v: str(k) for k, v in read_literal(folder / "encode/skill_id_dict.txt").items()}
    collector = Collector(str(folder))
    for part, fold in (("train", 0), ("test", TEST_FOLD)):
        base = folder / "train_test"
        texts = [read_text(base / f"{part}_{what}.txt")[0] for what in ("question", "skill")]
        both = [list(_groups(t, 3, f"{part}_{w}.txt")) for t, w in zip(texts, "qs", strict=True)]
        if len(both[0]) != len(both[1]):
            raise DataError(f"{base}: {part}_question.txt and {part}_skill.txt do not match.")
        users = [str(u) for u in read_literal(base / f"{part}_users.txt")]
        if len(users) != len(both[0]):
            users = [f"{part}:{place + 1}" for place in range(len(both[0]))]
        for user, (place, _, (asked, right)), (_, _, (skill, right2)) in zip(
            users, *both, strict=True
        ):
            where = f"{base}/{part}_question.txt line {place}"
            if right != right2:
                raise DataError(f"{where}: responses differ from those in {part}_skill.txt.")
            collector.add(
                user, [number(v, where) for v in right],
                question=[_known(questions, v, where) for v in asked],
                concepts=[_known(skills, v, where) for v in skill], fold=fold, where=where,
            )  # fmt: skip
    return collector.finish(name="assist2009_hakt")


def _files(path: str | Path) -> list[Path]:
    path = Path(path)
    if path.is_dir():
        files = sorted([*path.glob("*.csv"), *path.glob("*.txt")])
        if not files:
            raise DataError(
                f"The folder {path} holds no .csv or .txt file; set --config.data.path."
            )
        return files
    return [path]


def _folds(files: Sequence[Path]) -> dict[Path, int]:
    if len(files) == 1:
        return {}
    numbers = [re.search(r"test_?(\d+)$", file.stem) for file in files]
    if all(numbers):
        return {file: int(m.group(1)) for file, m in zip(files, numbers, strict=True)}
    parts = {f: TEST_FOLD if "test" in f.stem else 0 for f in files}
    return parts if len(set(parts.values())) == 2 else {}


def _groups(text: str, size: int, source: str) -> Iterator[tuple[int, str, list[list[str]]]]:
    """(number of the first line, header, fields of the lines below) of each student."""
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) % size:
        raise DataError(
            f"{source} has {len(lines)} lines, which is not a multiple of {size} lines a student. "
            "Choose another --config.data.kind."
        )
    for place in range(0, len(lines), size):
        yield (
            place + 1, lines[place].strip(), [fields(v) for v in lines[place + 1 : place + size]]
        )  # fmt: skip


def _student(header: str, file: Path, place: int, size: int, layout: str, several: bool) -> str:
    parts = fields(header)
    if len(parts) >= 2:
        return parts[0] if layout == "six_line" else parts[1]
    index = (place - 1) // size + 1
    return f"{file.stem}:{index}" if several else str(index)


def _column(values: list[str] | None, length: int, where: str) -> list[str] | None:
    """A column, or None where the line says 'NA' for all of it."""
    if values is None or (values in (["NA"], []) and length != len(values)):
        return None
    return None if values == ["NA"] else values


def _times(values: list[str], where: str) -> list[int]:
    try:
        return [int(v) for v in values]
    except ValueError as error:
        raise DataError(f"{where}: timestamps must be whole numbers: {error}.") from error


def _list(line: str, where: str) -> list:
    try:
        # JSON reads such lists ten times faster than Python's own parser.
        value = json.loads(line)
    except ValueError:
        try:
            value = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError) as error:
            raise DataError(f"{where}: not a list of numbers: {error}") from error
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list in brackets, got {line[:40]!r}.")
    return value


def _known(table: dict[int, str], key: str, where: str) -> str:
    try:
        return table[int(key)]
    except (KeyError, ValueError):
        raise DataError(f"{where}: id {key!r} is not in the encode/ tables.") from None
