"""What a model must beat, and what it cannot beat where the truth is known.

Floors are rates of questions, concepts and students, fitted on training data.

Without a prefix an open loop knows which questions were asked and nothing of the student's
answers, so the smoothed rate of the question is the first thing to compare with (spec 2.4).

Letters: B students, T steps, C concepts of a question at most, Q questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.evaluation.protocols import Predictor

SMOOTHING = 10.0  # Answers at the more general rate that are added to each rate.
STRENGTH = 5.0  # Answers of an average student that are added to what is known of a student.
_EDGE = 1e-6  # Log-odds stay finite.


@dataclasses.dataclass(frozen=True)
class Rates:
    """Answers of training students, counted.

    overall: share of right answers. concept [number of concepts + 1]: smoothed towards it; those
    never seen, padding among them, have the overall rate. question_right, question_count [Q + 1]:
    right answers and answers of each question. smoothing: answers added at the more general rate.
    """

    overall: float
    question_right: np.ndarray
    question_count: np.ndarray
    concept: np.ndarray
    smoothing: float


def fit_rates(batches: Iterable[Batch], *, smoothing: float = SMOOTHING) -> Rates:
    """Rates from batches of training students only.

    Every answer counts once for its question and once for each concept of it.
    Raises ValueError for negative smoothing and for batches without an answer.
    """
    if smoothing < 0:
        raise ValueError(f"smoothing={smoothing} must be at least 0 (usual: {SMOOTHING}).")
    tables = {name: [np.zeros(1), np.zeros(1)] for name in ("question", "concept")}
    right = total = 0.0
    for batch in batches:
        questions, concepts, responses, mask = (np.asarray(x) for x in batch)
        r = responses[mask].astype(np.float64)
        right, total = right + r.sum(), total + r.size
        of_step = concepts[mask]
        listed = of_step > 0
        _count(tables["question"], questions[mask], r)
        _count(tables["concept"], of_step[listed], np.repeat(r, listed.sum(1)))
    if not total:
        raise ValueError("Floors need training data; these batches hold no answer.")
    overall = right / total
    rights, counts = tables["concept"]
    concept = _shrink(rights, counts, overall, smoothing)
    concept[0] = overall
    return Rates(float(overall), *tables["question"], concept, smoothing)


def _shrink(right, count, prior, smoothing):
    prior, count = np.broadcast_to(prior, np.shape(count)), np.asarray(count, np.float64)
    weight = count + smoothing
    return np.divide(right + smoothing * prior, weight, out=prior.copy(), where=weight > 0)


def _count(table, ids, right):
    size = max(len(table[0]), int(ids.max(initial=0)) + 1)
    for i, weights in enumerate((right, None)):
        table[i] = np.pad(table[i], (0, size - len(table[i])))
        table[i] += np.bincount(ids, weights, size)


def _look_up(table, ids, default):
    known = (ids > 0) & (ids < len(table))  # Others may be new to training.
    return np.where(known, table[np.where(known, ids, 0)], default)


def question_rates(rates: Rates, batch: Batch) -> np.ndarray:
    """float64 (B, T): rate of each step's question, smoothed towards the rate of its concepts.

    A question that training never saw has the rate of its concepts.
    """
    questions = np.asarray(batch.questions)
    right = _look_up(rates.question_right, questions, 0.0)
    count = _look_up(rates.question_count, questions, 0.0)
    return _shrink(right, count, concept_rates(rates, batch), rates.smoothing)


def concept_rates(rates: Rates, batch: Batch) -> np.ndarray:
    """float64 (B, T): mean over the question's concepts of their rates; overall without any."""
    ids = np.asarray(batch.concepts)
    listed = ids > 0
    values = np.where(listed, _look_up(rates.concept, ids, rates.overall), 0.0)
    number = listed.sum(-1)
    return np.where(number > 0, values.sum(-1) / np.maximum(number, 1), rates.overall)


def student_rates(rates: Rates, batch: Batch, read, *, strength: float = STRENGTH) -> np.ndarray:
    """float64 (B, T): question rate times the student's standing in the answers read before it.

    odds_t = odds(question rate) * odds(s) / odds(m), where m is the mean question rate of the read
    steps before t and s = (right answers among them + strength * m) / (their number + strength).
    With nothing read this is the question rate. read: bool (B, T). Source: ours; spec 2.4 adds
    a running residual instead.
    """
    q = question_rates(rates, batch)
    read = np.asarray(read, bool) & np.asarray(batch.mask, bool)

    def before(x):
        x = np.where(read, x, 0.0)
        return np.cumsum(x, axis=1) - x

    number = before(1.0)
    mean = np.divide(before(q), number, out=np.full(q.shape, rates.overall), where=number > 0)
    right = before(np.asarray(batch.responses, np.float64))
    student = (right + strength * mean) / np.maximum(number + strength, _EDGE)
    standing = np.where(number > 0, _log_odds(student) - _log_odds(mean), 0.0)
    return 0.5 * (1.0 + np.tanh(0.5 * (_log_odds(q) + standing)))


def _log_odds(p):
    p = np.clip(p, _EDGE, 1.0 - _EDGE)
    return np.log(p) - np.log1p(-p)


def make_floors(rates: Rates) -> dict[str, Predictor]:
    """Floor name -> Predictor, usable like any model.

    'majority' says the overall rate always (AUC .5, ACC that of the commoner answer); 'question
    mean' and 'concept mean' know what is asked; 'student x question' also knows the true answers
    that the protocol lets it read, and feeds nothing back.
    """

    def constant(batch):
        return np.full(np.shape(batch.questions), rates.overall)

    out = {
        "majority": _answer_blind(constant),
        "concept mean": _answer_blind(lambda batch: concept_rates(rates, batch)),
        "question mean": _answer_blind(lambda batch: question_rates(rates, batch)),
    }

    def after(batch, observed, feedback, key):
        del feedback, key
        return _log_odds(student_rates(rates, batch, observed))

    out["student x question"] = Predictor(
        lambda batch: _log_odds(student_rates(rates, batch, batch.mask)), after
    )
    return out


def _answer_blind(probability) -> Predictor:
    def rolled(batch: Batch, observed, feedback: str, key: jax.Array):
        del observed, feedback, key
        return _log_odds(probability(batch))

    return Predictor(lambda batch: _log_odds(probability(batch)), rolled)


def bayes_ceiling(world, question_ids) -> Predictor:
    """The exact predictor of simulated answers: no model has less log-loss on them.

    world: `recsys_jax.tracing.data.World`; question_ids: int [Q + 1], the world's number of each
    dense question (`AnswerLog.question_ids`). It feeds nothing back: what is not observed is
    integrated out.
    """
    from recsys_jax.tracing.data.bayes import bayes_probabilities

    def known(batch, observed, feedback=None, key=None):
        del feedback, key
        mask, questions = np.asarray(batch.mask), np.asarray(batch.questions)
        numbers = np.where(mask, np.asarray(question_ids)[questions], 0)
        return _log_odds(
            bayes_probabilities(world, numbers, batch.responses, mask, np.asarray(observed))
        )

    return Predictor(lambda batch: known(batch, batch.mask), known)
