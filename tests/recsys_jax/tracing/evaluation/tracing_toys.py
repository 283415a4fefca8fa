"""Batches and models small enough to know every answer."""

import numpy as np

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.evaluation.protocols import Predictor

BIG = 4.0


def batch_of(*answers, questions=None, steps=None, concepts=None):
    """One student per list of responses; questions count up from 1 unless given."""
    steps = steps or max(map(len, answers))
    shape = (len(answers), steps)
    q, r, m = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    for i, row in enumerate(answers):
        r[i, : len(row)], m[i, : len(row)] = row, True
        q[i, : len(row)] = questions[i] if questions else np.arange(1, len(row) + 1)
    c = np.where(q > 0, (q - 1) % 3 + 1, 0)[..., None] if concepts is None else concepts
    return Batch(q, c.astype(np.int32), r, m)


def random_batch(rng, students=6, steps=20, questions=9, rate=0.6):
    lengths = rng.integers(2, steps + 1, students)
    return batch_of(
        *[(rng.random(n) < rate).astype(int) for n in lengths],
        questions=[rng.integers(1, questions + 1, n) for n in lengths],
        steps=steps,
    )


def roll(step, batch, observed, feedback, key=None):
    """Step by step: step(questions (B, t + 1), fed responses (B, t)) -> logit (B,)."""
    q, r = np.asarray(batch.questions), np.asarray(batch.responses, float)
    fed, out = np.zeros(q.shape), np.zeros(q.shape)
    rng = None if key is None else np.random.default_rng(np.asarray(key_numbers(key)))
    for t in range(q.shape[1]):
        out[:, t] = step(q[:, : t + 1], fed[:, :t])
        p = 1 / (1 + np.exp(-out[:, t]))
        own = {"threshold": p >= 0.5, "expected": p}.get(feedback)
        if feedback == "sample":
            own = rng.random(p.shape) < p
        fed[:, t] = np.where(observed[:, t], r[:, t], own)
    return out


def key_numbers(key):
    import jax

    return jax.random.key_data(key)


def predictor(step):
    """A Predictor of a step function."""

    def logits(batch):
        return roll(step, batch, np.ones(np.shape(batch.mask), bool), "threshold")

    return Predictor(logits, lambda b, o, f, k: roll(step, b, np.asarray(o), f, k))


def copy_last(questions, fed):
    """Says the last answer again; 'right' where there is none."""
    if not fed.shape[1]:
        return np.full(len(questions), BIG)
    return BIG * (2 * fed[:, -1] - 1)


def own_number(questions, fed):
    """Knows nothing but the question."""
    return np.sin(questions[:, -1])


def mean_so_far(questions, fed):
    """Log-odds of the smoothed mean of the answers so far, shifted by the question."""
    p = (fed.sum(1) + 1) / (fed.shape[1] + 2)
    return np.log(p) - np.log1p(-p) + 0.3 * np.sin(questions[:, -1])
