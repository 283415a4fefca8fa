"""Logistic regression on questions, concepts and counts of earlier answers (Best-LR style).

Features as in Best-LR (Gervet et al., JEDM 2020), written from memory of it: question, concepts,
log(1 + right) and log(1 + wrong) answers so far, in total and per concept. Deviation: features of
a concept set enter as their mean, as in every model here, and slopes are per concept.

Letters: B students, T steps, C concepts of a question at most, K concepts.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from recsys_jax.sequential.layers import partitioned
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.embeddings import check_config, set_mean
from recsys_jax.tracing.models.losses import bce


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogisticConfig:
    """l2: weight of |w|^2 / 2 against the summed log-loss (scikit-learn's 1/C); not on `bias`.

    max_iterations, tolerance: L-BFGS stops when no gradient entry exceeds tolerance per answer.
    """

    l2: float = 1.0
    max_iterations: int = 200
    tolerance: float = 1e-6

    def __post_init__(self):
        check_config(self, ("l2", "max_iterations", "tolerance"))


class Counts(NamedTuple):
    """Answers so far: per concept (B, K + 1, 2), slot 0 unused, and in all (B, 2); wrong, right."""

    concepts: jax.Array
    total: jax.Array


class Features(NamedTuple):
    """What a logit reads: log(1 + counts so far), of the slots (..., C, 2), in all (..., 2)."""

    concepts: jax.Array
    total: jax.Array


def start_counts(batch_size: int, num_concepts: int) -> Counts:
    """No answers yet."""
    return Counts(jnp.zeros((batch_size, num_concepts + 1, 2)), jnp.zeros((batch_size, 2)))


def features_of(counts: Counts, concepts: jax.Array) -> Features:
    """The features of a question with concepts (B, C)."""
    slots = jnp.take_along_axis(counts.concepts, concepts[..., None], axis=1)
    return Features(jnp.log1p(slots), jnp.log1p(counts.total))


def add_answer(counts: Counts, concepts: jax.Array, response: jax.Array, real=True) -> Counts:
    """Counts after response (B,), 0/1 or a probability, which counts as that share of an answer."""
    response = response.astype(jnp.float32)
    answer = jnp.stack([1 - response, response], -1) * jnp.asarray(real, jnp.float32)[..., None]
    students = jnp.arange(concepts.shape[0])[:, None]
    # Slot 0 gathers the empty places of concept sets; no question reads it with a weight.
    table = counts.concepts.at[students, concepts].add(answer[:, None])
    return Counts(table, counts.total + answer)


def past_features(batch: Batch, num_concepts: int) -> Features:
    """Features before each step: (B, T, C, 2) and (B, T, 2)."""

    def step(counts, inputs):
        concepts, response, real = inputs
        return add_answer(counts, concepts, response, real), features_of(counts, concepts)

    inputs = (batch.concepts, batch.responses, batch.mask)
    inputs = jax.tree.map(lambda x: jnp.asarray(x).swapaxes(0, 1), inputs)
    _, features = jax.lax.scan(step, start_counts(batch.concepts.shape[0], num_concepts), inputs)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), features)


class Logistic(nn.Module):
    """logit = bias + question + mean over concepts (own + slopes . log(1 + counts)) + total.

    Convex in its parameters; `fit_logistic` finds them, gradient steps do as well.
    """

    config: LogisticConfig
    num_questions: int
    num_concepts: int

    def setup(self):
        zeros, rows = nn.initializers.zeros, self.num_concepts + 1
        table = partitioned(zeros, "items")
        self.bias = self.param("bias", zeros, ())
        self.question = self.param("question", table, (self.num_questions + 1,))
        self.concept = self.param("concept", table, (rows,))
        slopes = partitioned(zeros, "items", None)
        self.concept_slopes = self.param("concept_slopes", slopes, (rows, 2))
        self.total_slopes = self.param("total_slopes", partitioned(zeros, None), (2,))

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): logit of each response from the true responses before it."""
        return self.logits(past_features(batch, self.num_concepts), batch.questions, batch.concepts)

    def logits(self, features: Features, questions: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (...): logits of questions (...) with concepts (..., C)."""
        slopes = jnp.take(self.concept_slopes, concepts, axis=0)
        slots = jnp.take(self.concept, concepts) + (slopes * features.concepts).sum(-1)
        question = jnp.where(questions > 0, jnp.take(self.question, questions), 0)
        total = (self.total_slopes * features.total).sum(-1)
        return self.bias + question + set_mean(slots, concepts) + total

    def begin(self, batch: Batch) -> Counts:
        """No answers yet."""
        return start_counts(batch.questions.shape[0], self.num_concepts)

    def predict_step(self, state, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (B,): logit for question (B,) with concepts (B, C)."""
        return self.logits(features_of(state, concepts), question, concepts)

    def update_step(self, state, question, concepts, response) -> Counts:
        """Counts after response (B,), 0/1 or a probability."""
        return add_answer(state, concepts, response)


def objective(module: Logistic, variables, features: Features, batch: Batch) -> jax.Array:
    """Summed log-loss of real steps and l2 / 2 |w|^2, w all but `bias`; in nats."""
    logits = module.apply(variables, features, batch.questions, batch.concepts, method="logits")
    loss = jnp.where(batch.mask, bce(logits, batch.responses), 0).sum()
    weights = {name: w for name, w in variables["params"].items() if name != "bias"}
    return loss + 0.5 * module.config.l2 * optax.tree_utils.tree_norm(weights, squared=True)


def fit_logistic(module: Logistic, batch: Batch) -> dict:
    """The variables that minimise `objective` over the training students, by L-BFGS."""
    batch = jax.tree.map(jnp.asarray, batch)
    cfg = module.config
    features = jax.jit(past_features, static_argnums=1)(batch, module.num_concepts)
    variables = nn.unbox(module.init(jax.random.key(0), jax.tree.map(lambda x: x[:1], batch)))
    solver = optax.lbfgs()
    answers = jnp.maximum(batch.mask.sum(), 1)

    # The data are arguments: as constants of the program XLA would fold them for minutes.
    @jax.jit
    def solve(variables, features, batch):
        def loss(variables):
            # Per answer, so that the line search and the tolerance do not depend on their number.
            return objective(module, variables, features, batch) / answers

        value_and_grad = optax.value_and_grad_from_state(loss)

        def step(carry):
            variables, state, _, iteration = carry
            value, grad = value_and_grad(variables, state=state)
            updates, state = solver.update(
                grad, state, variables, value=value, grad=grad, value_fn=loss
            )
            variables = optax.apply_updates(variables, updates)
            grad = optax.tree_utils.tree_get(state, "grad")
            largest = optax.tree_utils.tree_norm(grad, ord=jnp.inf)
            return variables, state, largest, iteration + 1

        def unfinished(carry):
            return (carry[2] > cfg.tolerance) & (carry[3] < cfg.max_iterations)

        start = (variables, solver.init(variables), jnp.inf, 0)
        return jax.lax.while_loop(unfinished, step, start)[0]

    return solve(variables, features, batch)
