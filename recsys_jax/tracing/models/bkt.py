"""Bayesian knowledge tracing (Corbett and Anderson 1995): a hidden Markov model per concept.

Letters: B students, T steps, C concepts of a question at most, K concepts.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recsys_jax.sequential.layers import partitioned
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.embeddings import check_config, set_mean

EDGE = 1e-4  # probabilities stay this far from 0 and from their caps


@dataclasses.dataclass(frozen=True, kw_only=True)
class BKTConfig:
    """Start values, caps and how long expectation maximisation runs; all ours.

    forgetting: a known concept may become unknown (rate `forget`); classic BKT has none.
    cap: guess and slip stay below it, or knowing and not knowing could change places.
    prior_strength: every probability is drawn to its start value as by this many observations,
    for concepts with few answers; 0 is maximum likelihood.
    """

    known: float = 0.4
    learn: float = 0.15
    forget: float = 0.05
    guess: float = 0.25
    slip: float = 0.15
    forgetting: bool = False
    cap: float = 0.5
    prior_strength: float = 2.0
    iterations: int = 30
    students_at_once: int = 1024

    def __post_init__(self):
        check_config(self, ("known", "learn", "forget", "guess", "slip", "iterations"))
        for name in ("known", "learn", "forget"):
            if getattr(self, name) >= 1:
                raise ValueError(f"BKTConfig.{name}={getattr(self, name)} must be below 1")
        for name in ("guess", "slip"):
            if getattr(self, name) >= self.cap:
                raise ValueError(
                    f"BKTConfig.{name}={getattr(self, name)} must be below cap={self.cap}"
                )


class Tables(NamedTuple):
    """Per concept (K + 1 rows, row 0 unused): start (K + 1, 2), move (K + 1, 2, 2) from -> to,
    answer (K + 1, 2, 2) state -> response. State 0: not known, 1: known."""

    start: jax.Array
    move: jax.Array
    answer: jax.Array


def tables_of(known, learn, forget, guess, slip) -> Tables:
    """Tables from probabilities (K + 1,) each."""

    def pair(p):
        return jnp.stack([1 - p, p], -1)

    return Tables(
        pair(known),
        jnp.stack([pair(learn), pair(1 - forget)], -2),
        jnp.stack([pair(guess), pair(1 - slip)], -2),
    )


class BKT(nn.Module):
    """P(known) per concept, filtered by answers; `fit_bkt` is expectation maximisation.

    A question with several concepts: the mean of their predictions; each concept is updated by the
    answer on its own (the usual treatment; no model of how concepts combine). Without concepts the
    probability is 1/2. Parameters are unconstrained, so gradient steps work as well.
    """

    config: BKTConfig
    num_questions: int
    num_concepts: int

    def setup(self):
        cfg = self.config

        def table(name, start, cap=1.0):
            init = partitioned(nn.initializers.constant(np.log(start / (cap - start))), "items")
            return self.param(name, init, (self.num_concepts + 1,))

        self.known = table("known", cfg.known)
        self.learn = table("learn", cfg.learn)
        self.forget = table("forget", cfg.forget) if cfg.forgetting else None
        self.guess = table("guess", cfg.guess, cfg.cap)
        self.slip = table("slip", cfg.slip, cfg.cap)

    def tables(self) -> Tables:
        """The model's probabilities."""
        sigmoid, cap = nn.sigmoid, self.config.cap
        forget = jnp.zeros_like(self.known) if self.forget is None else sigmoid(self.forget)
        return tables_of(
            sigmoid(self.known),
            sigmoid(self.learn),
            forget,
            cap * sigmoid(self.guess),
            cap * sigmoid(self.slip),
        )

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): logit of each response from the true responses before it."""
        tables = self.tables()

        def step(known, inputs):
            concepts, response = inputs
            logits = _predict(tables, known, concepts)
            return _update(tables, known, concepts, response), logits

        inputs = jax.tree.map(
            lambda x: jnp.asarray(x).swapaxes(0, 1), (batch.concepts, batch.responses)
        )
        return jax.lax.scan(step, self.begin(batch), inputs)[1].T

    def begin(self, batch: Batch) -> jax.Array:
        """P(known) before any answer, (B, K + 1)."""
        known = self.tables().start[:, 1]
        return jnp.broadcast_to(known, (batch.questions.shape[0], *known.shape))

    def predict_step(self, state, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (B,): logit for question (B,) with concepts (B, C)."""
        return _predict(self.tables(), state, concepts)

    def update_step(self, state, question, concepts, response):
        """P(known) after response (B,); a probability mixes the two posteriors."""
        return _update(self.tables(), state, concepts, response)


def _predict(tables: Tables, known, concepts):
    p = jnp.take_along_axis(known, concepts, axis=1)
    right = tables.answer[concepts, :, 1]
    p = set_mean((1 - p) * right[..., 0] + p * right[..., 1], concepts)
    p = jnp.where((concepts > 0).any(-1), p, 0.5)
    return jnp.log(p) - jnp.log1p(-p)


def _update(tables: Tables, known, concepts, response):
    p = jnp.take_along_axis(known, concepts, axis=1)[..., None]
    answer = tables.answer[concepts]  # (B, C, state, response)
    joint = jnp.concatenate([(1 - p) * answer[..., 0, :], p * answer[..., 1, :]], -1)
    joint = joint.reshape(*p.shape[:-1], 2, 2)
    posterior = joint[..., 1, :] / joint.sum(-2)  # (B, C, response)
    r = response[:, None].astype(known.dtype)
    after = (1 - r) * posterior[..., 0] + r * posterior[..., 1]
    move = tables.move[concepts]
    after = (1 - after) * move[..., 0, 1] + after * move[..., 1, 1]
    # An empty slot writes concept 0, which no prediction reads.
    return known.at[jnp.arange(known.shape[0])[:, None], concepts].set(after)


def log_likelihood(log_tables: Tables, batch: Batch) -> jax.Array:
    """Log of the summed weights of all hidden paths under tables exp(log_tables), in nats.

    With normalised tables: the log-likelihood of the responses, every concept a chain of its own.
    """
    tables = jax.tree.map(jnp.exp, log_tables)
    students = jnp.arange(batch.concepts.shape[0])[:, None]

    def step(belief, inputs):
        concepts, response, real = inputs
        real = real[:, None] & (concepts > 0)
        joint = belief[students, concepts] * tables.answer[concepts, :, response[:, None]]
        total = joint.sum(-1)
        moved = jnp.einsum("bci,bcij->bcj", joint / total[..., None], tables.move[concepts])
        target = jnp.where(real, concepts, 0)
        belief = belief.at[students, target].set(moved)
        return belief, jnp.where(real, jnp.log(total), 0).sum()

    belief = jnp.broadcast_to(tables.start, (len(students), *tables.start.shape))
    inputs = (batch.concepts, batch.responses, batch.mask)
    inputs = jax.tree.map(lambda x: x.swapaxes(0, 1), inputs)
    return jax.lax.scan(step, belief, inputs)[1].sum()


@jax.jit
def expected_counts(tables: Tables, batch: Batch) -> tuple[jax.Array, Tables]:
    """The log-likelihood and the expected number of uses of every table entry.

    The derivative of the log of a sum of products by the log of a factor is the factor's expected
    count: reverse differentiation is the backward pass of forward-backward.
    """
    log_tables = jax.tree.map(lambda p: jnp.log(jnp.maximum(p, 1e-30)), tables)
    return jax.value_and_grad(log_likelihood)(log_tables, batch)


def fit_bkt(module: BKT, batch: Batch) -> dict:
    """The variables of `module` by expectation maximisation over the training students."""
    cfg, rows = module.config, module.num_concepts + 1
    starts = {name: getattr(cfg, name) for name in ("known", "learn", "forget", "guess", "slip")}
    if not cfg.forgetting:
        starts["forget"] = 0.0
    p = {name: np.full(rows, value) for name, value in starts.items()}
    chunks = _chunks(batch, cfg.students_at_once)
    for _ in range(cfg.iterations):
        tables = jax.tree.map(jnp.float32, tables_of(**p))
        total = jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, tables))
        for chunk in chunks:
            counts = expected_counts(tables, chunk)[1]
            total = jax.tree.map(lambda x, y: x + np.asarray(y, np.float64), total, counts)
        p = maximise(total, starts, cfg)
    caps = {"guess": cfg.cap, "slip": cfg.cap}
    names = [name for name in p if name != "forget" or cfg.forgetting]
    logits = {name: np.log(p[name] / (caps.get(name, 1.0) - p[name])) for name in names}
    return {"params": {name: jnp.asarray(x, jnp.float32) for name, x in logits.items()}}


def maximise(counts: Tables, starts: dict[str, float], config: BKTConfig) -> dict[str, np.ndarray]:
    """Probabilities (K + 1,) from expected counts and `prior_strength` pseudo-counts, capped.

    Each is a share a / (a + b) with a concave likelihood: clipped, it is the constrained optimum.
    """
    shares = {
        "known": (counts.start[:, 1], counts.start[:, 0], 1.0),
        "learn": (counts.move[:, 0, 1], counts.move[:, 0, 0], 1.0),
        "forget": (counts.move[:, 1, 0], counts.move[:, 1, 1], 1.0),
        "guess": (counts.answer[:, 0, 1], counts.answer[:, 0, 0], config.cap),
        "slip": (counts.answer[:, 1, 0], counts.answer[:, 1, 1], config.cap),
    }
    result = {}
    for name, (yes, no, cap) in shares.items():
        strength = config.prior_strength
        total = yes + no + strength
        # A concept that was never seen keeps its start values.
        share = (yes + strength * starts[name]) / np.maximum(total, 1e-12)
        share = np.where(total > 1e-12, share, starts[name])
        result[name] = np.clip(share, EDGE, cap - EDGE)
    if not config.forgetting:
        result["forget"] = np.zeros_like(result["forget"])
    return result


def _chunks(batch: Batch, size: int) -> list[Batch]:
    """Equal parts of the students, the last filled up with empty rows: one compiled shape."""
    students = batch.mask.shape[0]
    size = min(size, students)
    padding = -students % size

    def divide(x):
        x = np.asarray(x)
        x = np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, size, *x.shape[1:])

    parts = jax.tree.map(divide, batch)
    return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), parts) for i in range(len(parts.mask))]
