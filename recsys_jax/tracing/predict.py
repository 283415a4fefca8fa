"""What students would answer: given lists of questions, or the next ones of the log.

Letters: B students, N questions of a student.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.run_choice import choose_run
from recsys_jax.tracing.config import PredictConfig, TracingConfig
from recsys_jax.tracing.data import TracingData
from recsys_jax.tracing.evaluation.student import Simulation, roller_of, simulate
from recsys_jax.tracing.runs import Run

History = list[tuple[int, int]]
_AT_ONCE = 256  # students of a pass


def predict(
    experiment: TracingConfig, data: TracingData, runs: Sequence[Run], workdir: pathlib.Path
) -> pathlib.Path:
    """Writes one row per student and question with the chance of a right answer and the samples.

    Raises:
      ValueError: unknown model, columns, questions; a student with more answers than fit.
    """
    settings = experiment.predict
    one = choose_run(runs, settings.model)
    students, questions, histories = (
        _from_file(settings, data) if settings.questions else _from_log(settings, data)
    )
    most = max((len(h) + len(q) for h, q in zip(histories, questions, strict=True)), default=1)
    roller = roller_of(one.model, one.variables(one.params()))
    concepts = data.vocabulary.concepts(np.arange(data.log.num_questions + 1))
    parts = []
    samples = settings.samples if settings.feedback == "sample" else 1
    for begin in range(0, len(students), _AT_ONCE):
        chosen = slice(begin, begin + _AT_ONCE)
        parts.append(
            simulate(
                roller,
                questions[chosen],
                concepts,
                histories=histories[chosen],
                samples=samples,
                feedback=settings.feedback,
                key=jax.random.fold_in(jax.random.key(settings.seed), begin),
                max_steps=most,
            )  # fmt: skip
        )
    found = _joined(parts)
    output = pathlib.Path(settings.output or workdir / "predictions" / f"{one.entry.label}.csv")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = found.write(output, student_ids=students, question_ids=np.asarray(data.log.question_ids))
    print(
        f"{rows:,} answers of {len(students):,} students simulated by {one.entry.label}, "
        f"{samples} sample{'s' if samples > 1 else ''} each: {output}"
    )
    return output


def _from_log(settings: PredictConfig, data: TracingData):
    """The test students: their first answers, and the questions that came next."""
    students, questions, histories = [], [], []
    sequences = data.sequences("test")
    for student, begin, length in zip(
        sequences.student, sequences.begin, sequences.lengths, strict=True
    ):
        place = int(np.floor(settings.prefix * length))
        rows = slice(begin + place, begin + min(place + settings.ahead, length))
        if settings.history == "log":
            histories.append(_answers(data, slice(begin, begin + place)))
        else:
            histories.append([])
        students.append(data.log.student_ids[student])
        questions.append(data.log.question[rows].tolist())
    return students, questions, histories


def _from_file(settings: PredictConfig, data: TracingData):
    """Lists of questions out of a table, and what the log knows of the students."""
    import polars

    path = pathlib.Path(settings.questions)
    if not path.is_file():
        raise DataError(f"--config.predict.questions={path} is no file.")
    if path.suffix not in (".csv", ".parquet"):
        raise DataError(f"--config.predict.questions={path} must end in .csv or .parquet.")
    if path.suffix == ".parquet":
        frame = polars.read_parquet(path)
    else:
        frame = polars.read_csv(path, infer_schema=False)
    for name in ("student", "question"):
        if name not in frame.columns:
            raise DataError(
                f"{path} has no column {name!r}; needed are student and question, in the order in "
                f"which the questions are asked. It has {', '.join(frame.columns)}."
            )
    asked = frame["question"].to_list()
    dense = data.vocabulary.questions(asked, "error" if settings.unknown == "error" else "zero")
    if skipped := int((dense == 0).sum()):
        print(f"{skipped} of {len(dense)} rows with questions unknown to the log are left out.")
    by_student: dict[str, list[int]] = {}
    for student, question in zip(map(str, frame["student"].to_list()), dense, strict=True):
        asked_of = by_student.setdefault(student, [])
        if question:
            asked_of.append(int(question))
    places = {str(name): n for n, name in enumerate(data.log.student_ids.tolist())}
    offsets = data.log.offsets
    longest = data.config.clean.max_length
    histories = []
    for student in by_student:
        place = places.get(student)
        if place is None or settings.history == "none":
            histories.append([])
            continue
        # The newest answers where there are more than a sequence holds.
        begin = max(offsets[place], offsets[place + 1] - longest)
        histories.append(_answers(data, slice(begin, offsets[place + 1])))
    return list(by_student), list(by_student.values()), histories


def _answers(data: TracingData, rows: slice) -> History:
    log = data.log
    return list(zip(log.question[rows].tolist(), log.response[rows].tolist(), strict=True))


def _joined(parts: Sequence[Simulation]) -> Simulation:
    """Parts of different students one below the other."""
    if not parts:
        raise DataError("There is nobody to predict for: no student has a question left.")
    width = max(part.questions.shape[1] for part in parts)

    def padded(array: np.ndarray) -> np.ndarray:
        short = width - array.shape[-1]
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, short)])

    return Simulation(
        np.concatenate([padded(part.questions) for part in parts]),
        np.concatenate([padded(part.probability) for part in parts]),
        np.concatenate([padded(part.answers) for part in parts], axis=1),
    )
