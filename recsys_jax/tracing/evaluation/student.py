"""A trained model in a student's place: answers to a list of questions, or an environment.

Letters: B students, T steps, N questions asked, K samples, C concepts of a question at most, Q
questions.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from recsys_jax.tracing.batch import Batch

PROBES = 16  # Rows of a pass that estimates mastery.
MAX_STEPS = 200


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Simulated answers of B students to N questions each; shorter lists are padded.

    questions: int32 [B, N], 0 is padding. probability: float64 [B, N], chance of a right answer,
    averaged over the K samples. answers: int8 [K, B, N], the answers of each sample.
    """

    questions: np.ndarray
    probability: np.ndarray
    answers: np.ndarray

    def write(
        self,
        path,
        *,
        student_ids: Sequence[Any] | None = None,
        question_ids: np.ndarray | None = None,
    ) -> int:
        """Writes one row per student and question to .csv or .parquet; returns their number.

        Columns: student, place (from 1), question, probability, answer_1 ... answer_K.
        question_ids: original ids by dense question; None writes the dense ones.
        Raises ValueError for another ending and for ids that do not fit the students.
        """
        import polars

        path = pathlib.Path(path)
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"{path.name!r} must end in .csv or .parquet (--config.predict).")
        ids = np.arange(len(self.questions)) if student_ids is None else np.asarray(student_ids)
        if len(ids) != len(self.questions):
            raise ValueError(f"{len(ids)} student ids for {len(self.questions)} students.")
        student, place = np.nonzero(self.questions)
        asked = self.questions[student, place]
        columns = {
            "student": ids[student],
            "place": place + 1,
            "question": asked if question_ids is None else question_ids[asked],
            "probability": self.probability[student, place],
        }
        columns |= {f"answer_{k + 1}": a[student, place] for k, a in enumerate(self.answers)}
        frame = polars.DataFrame(columns)
        partial = path.with_name(path.name + ".partial")
        (frame.write_csv if path.suffix == ".csv" else frame.write_parquet)(partial)
        partial.replace(path)
        return len(frame)


Roller = Callable[[Batch, np.ndarray, str, jax.Array], tuple[jax.Array, jax.Array]]


def roller_of(model, variables) -> Roller:
    """(batch, observed, feedback, key) -> logits and the responses fed back, both (B, T)."""
    from recsys_jax.tracing.rollout import rollout

    run = jax.jit(
        lambda variables, batch, observed, feedback, key: rollout(
            model, variables, batch, observed, feedback=feedback, key=key, with_responses=True
        ),
        static_argnums=3,
    )
    return lambda batch, observed, feedback, key: run(variables, batch, observed, feedback, key)


def simulate(
    roller: Roller,
    questions: Sequence[Sequence[int]],
    concepts: np.ndarray,
    *,
    histories: Sequence[Sequence[tuple[int, int]]] | None = None,
    samples: int = 1,
    feedback: str = "sample",
    key: jax.Array | None = None,
    max_steps: int = MAX_STEPS,
) -> Simulation:
    """What students answer to given questions after their histories.

    Args:
      roller: see `roller_of`.
      questions: one list per student. concepts: int [Q + 1, C], the concepts of each question.
      histories: (question, response) pairs per student, oldest first; None: new students.
      samples: K; 'threshold' gives the likelier answer at each step and takes one.
      max_steps: history and questions together may not be longer.
    Raises:
      ValueError: an unknown question, a response other than 0 or 1, too many steps, lists that do
        not match.
    """
    if histories is None:
        histories = [()] * len(questions)
    if len(histories) != len(questions):
        raise ValueError(f"{len(histories)} histories for {len(questions)} lists of questions.")
    if feedback not in ("sample", "threshold"):
        raise ValueError(f"feedback={feedback!r} is unknown; allowed are sample, threshold.")
    if samples < 1 or (samples > 1 and feedback == "threshold"):
        raise ValueError(f"samples={samples} must be at least 1, and 1 with 'threshold'.")
    key = jax.random.key(0) if key is None else key
    rows = [
        [*history, *((q, 0) for q in asked)]
        for history, asked in zip(histories, questions, strict=True)
    ]
    steps = max((len(row) for row in rows), default=0)
    batch = _batch(rows, np.asarray(concepts), min(steps, max_steps), max_steps)
    begin = np.array([len(history) for history in histories])[:, None]
    observed = np.arange(batch.mask.shape[1])[None] < begin
    length = max((len(asked) for asked in questions), default=0)
    place = np.minimum(begin + np.arange(length), max(steps - 1, 0))
    real = np.arange(length) < np.array([len(asked) for asked in questions])[:, None]
    total, answers = np.zeros(real.shape), []
    for k in range(samples):
        logits, fed = roller(batch, observed, feedback, jax.random.fold_in(key, k))
        logits = np.take_along_axis(np.asarray(logits, np.float64), place, 1)
        total += np.where(real, 0.5 * (1.0 + np.tanh(0.5 * logits)), 0.0)
        answers.append(np.where(real, np.take_along_axis(np.asarray(fed), place, 1), 0))
    asked = np.where(real, np.take_along_axis(batch.questions, place, 1), 0)
    return Simulation(asked, total / samples, np.stack(answers).astype(np.int8))


@dataclasses.dataclass(frozen=True)
class StudentState:
    """What a simulated student has answered so far: int32 [n] each, oldest first.

    Everything the simulator knows of the student: `reset` takes it back.
    """

    questions: np.ndarray
    responses: np.ndarray

    def __len__(self) -> int:
        return len(self.questions)


class StudentSimulator:
    """A trained model as the student of a recommender of learning paths.

    `reset`, then `step` by step, in the shape of a gymnasium environment; `mastery` is what a
    reward is usually made of. It works with every model: each call is one teacher-forced pass over
    the history so far, of a fixed shape that is compiled once.
    """

    def __init__(
        self,
        logits: Callable[[Batch], jax.Array],
        concepts: np.ndarray,
        *,
        max_steps: int = MAX_STEPS,
        answer: str = "sample",
        probes_per_concept: int = 8,
        seed: int = 0,
    ):
        """A simulator of new students; `reset` before the first step is not needed.

        Args:
          logits: as `protocols.Predictor.logits`.
          concepts: int [Q + 1, C], the concepts of each question, 0 fills up; row 0 is padding.
          max_steps: longest history together with the question asked.
          answer: 'sample' draws answers, 'threshold' gives the likelier one.
          probes_per_concept: questions of each concept that `mastery` asks at most, drawn by seed.
          seed: of answers and probes.
        Raises:
          ValueError: an unknown way of answering, a table of another shape.
        """
        concepts = np.asarray(concepts)
        if concepts.ndim != 2 or len(concepts) < 2:
            raise ValueError(
                f"concepts has shape {concepts.shape}; needed is one row per question, row 0 for "
                "padding."
            )
        if answer not in ("sample", "threshold"):
            raise ValueError(f"answer={answer!r} is unknown; allowed are sample, threshold.")
        if max_steps < 1 or probes_per_concept < 1:
            raise ValueError(
                f"max_steps={max_steps} and probes_per_concept={probes_per_concept} must be at "
                "least 1."
            )
        self._logits, self._concepts, self._answer = logits, concepts, answer
        self.max_steps = max_steps
        self._history: list[tuple[int, int]] = []
        self._rng = np.random.default_rng(seed)
        self._probes = _probes(concepts, probes_per_concept, np.random.default_rng([seed, 1]))

    @property
    def num_questions(self) -> int:
        return len(self._concepts) - 1

    @property
    def num_concepts(self) -> int:
        return int(self._concepts.max(initial=0))

    @property
    def state(self) -> StudentState:
        """The answers so far."""
        history = np.array(self._history, np.int32).reshape(-1, 2)
        return StudentState(history[:, 0], history[:, 1])

    def reset(
        self,
        history: StudentState | Sequence[tuple[int, int]] = (),
        *,
        seed: int | None = None,
    ) -> StudentState:
        """Another student, who has answered `history`, (question, response) pairs, oldest first.

        seed: begins the stream of random numbers anew; None lets it run on.
        Raises ValueError for unknown questions, responses other than 0 or 1, too long a history.
        """
        if isinstance(history, StudentState):
            history = zip(history.questions, history.responses, strict=True)
        history = [(int(q), int(r)) for q, r in history]
        _batch([history], self._concepts, self.max_steps, self.max_steps)
        self._history = history
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        return self.state

    def probability(self, question: int) -> float:
        """Chance that the student answers the question right now; nothing changes."""
        return float(self._ask([question])[0])

    def step(self, question: int) -> tuple[int, float]:
        """Asks a question: the response (1 right, 0 wrong) and its chance beforehand.

        Raises ValueError for an unknown question and after `max_steps` answers.
        """
        p = self.probability(question)
        right = self._rng.random() < p if self._answer == "sample" else p >= 0.5
        self._history.append((int(question), int(right)))
        return int(right), p

    def mastery(self) -> np.ndarray:
        """float64 [number of concepts + 1]: mean chance of a right answer over each one's probes.

        NaN for padding (0) and for concepts without a question.
        """
        asked = np.unique(np.concatenate([*self._probes, np.zeros(0, np.int64)]).astype(int))
        by_question = np.full(len(self._concepts), np.nan)
        by_question[asked] = self._ask(asked)
        return np.array([by_question[p].mean() if len(p) else np.nan for p in self._probes])

    def _ask(self, questions) -> np.ndarray:
        """Chances [n] of right answers to each of the questions, asked now."""
        place = len(self._history)
        if place >= self.max_steps:
            raise ValueError(
                f"The student has answered {place} questions, the most that max_steps="
                f"{self.max_steps} allows; reset, or raise max_steps if the model can take it."
            )
        out = []
        # One question is one row; many are asked side by side, the last rows filled up.
        size = 1 if len(questions) == 1 else PROBES
        for begin in range(0, len(questions), size):
            part = np.asarray(questions[begin : begin + size])
            rows = [[*self._history, (int(q), 0)] for q in np.resize(part, size)]
            batch = _batch(rows, self._concepts, self.max_steps, self.max_steps)
            logits = np.asarray(self._logits(batch), np.float64)[: len(part), place]
            out.append(0.5 * (1.0 + np.tanh(0.5 * logits)))
        return np.concatenate(out)


def _probes(concepts, most, rng) -> list[np.ndarray]:
    """At most `most` questions of each concept; concept 0, padding, comes first and has none."""
    question, place = np.nonzero(concepts[1:])
    question, concept = question + 1, concepts[question + 1, place]
    order = np.argsort(concept, kind="stable")
    numbers = np.bincount(concept, minlength=int(concepts.max(initial=0)) + 1)
    groups = np.split(question[order], np.cumsum(numbers)[:-1])
    return [np.sort(rng.permutation(np.unique(group))[:most]) for group in groups]


def _batch(rows, concepts, steps, max_steps) -> Batch:
    """Lists of (question, response) as a batch; the one place where they are checked."""
    questions = np.zeros((len(rows), steps), np.int32)
    responses, mask = np.zeros_like(questions), np.zeros(questions.shape, bool)
    for i, row in enumerate(rows):
        if len(row) > max_steps:
            raise ValueError(
                f"Student {i} has {len(row)} steps, max_steps={max_steps} allows no more: keep "
                "the last ones, or raise max_steps if the model can take it."
            )
        if row:
            pairs = np.asarray(row)
            unknown = pairs[(pairs[:, 0] < 1) | (pairs[:, 0] >= len(concepts)), 0]
            if unknown.size:
                raise ValueError(
                    f"Question {unknown[0]} of student {i} is unknown; the model knows 1 to "
                    f"{len(concepts) - 1}."
                )
            if not np.isin(pairs[:, 1], (0, 1)).all():
                raise ValueError(f"Student {i} has a response other than 0 or 1.")
            questions[i, : len(row)], responses[i, : len(row)] = pairs.T
            mask[i, : len(row)] = True
    return Batch(questions, np.asarray(concepts, np.int32)[questions], responses, mask)
