"""AdvKT's generator: a GRU over questions and responses with attention over its own past states.

Source: the released code, spec sections 1.3 and 1.5. Letters: B students, T steps, C concepts of a
question, D width, Q width of a question vector.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import check_choice
from recsys_jax.tracing.advkt import unrolling
from recsys_jax.tracing.advkt.config import GeneratorConfig
from recsys_jax.tracing.advkt.layers import (
    class_nll,
    declare_gru,
    declare_mlp,
    declare_table,
    mlp,
    question_features,
)
from recsys_jax.tracing.advkt.unrolling import Cell, Unrolled
from recsys_jax.tracing.batch import Batch


class StepState(NamedTuple):
    """What the generator remembers between steps.

    count: int32 (B,), responses taken in. hidden: (B, D). keys: (B, T + 1, Q) and values:
    (B, T + 1, D), question vectors and the states after them; slot 0 stays zero.
    """

    count: jax.Array
    hidden: jax.Array
    keys: jax.Array
    values: jax.Array


class Generator(nn.Module):
    """Simulated student: logit t from questions up to t and responses before t.

    A `SteppedModel`. It uses `setup`, because several methods share the parameters.
    """

    config: GeneratorConfig

    def setup(self):
        cfg = self.config
        dim, width, hidden = cfg.dim, cfg.question_dim, cfg.num_layers
        rasch = cfg.question_embedding == "rasch"
        self.question_table = (
            declare_table(self, "difficulties", cfg.num_questions, 1, deviation=0.01)
            if rasch
            else declare_table(self, "questions", cfg.num_questions, dim)
        )
        self.variation_table = (
            declare_table(self, "variations", cfg.num_concepts, dim) if rasch else None
        )
        self.concept_table = declare_table(self, "concepts", cfg.num_concepts, dim)
        if cfg.question_mlp:
            self.question_params = declare_mlp(self, "question_vector", 2 * dim, dim, hidden)
        self.cell = Cell(
            predict=declare_mlp(self, "predict", width + 2 * dim, 1, hidden),
            gru=declare_gru(self, "gru", 2 * (width + dim), dim),
        )
        self.ask_params = declare_mlp(self, "ask", 2 * dim, cfg.num_questions + 1, hidden)
        self.value_params = declare_mlp(self, "value", 3 * dim, 1, hidden)

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): teacher-forced logits; sows the weighted question loss into 'losses'."""
        unrolled = self.unroll(
            batch, observed=jnp.ones_like(batch.mask), feedback="threshold", train=train
        )
        weight = self.config.question_loss_weight
        if weight > 0 and self.is_mutable_collection("losses") and not self.is_initializing():
            nll = self.question_nll(unrolled, batch.questions, batch.mask, train=train)
            count = jnp.maximum(jnp.sum(batch.mask), 1)
            loss = weight * jnp.sum(jnp.where(batch.mask, nll, 0)) / count
            self.sow("losses", "question", loss)
        return unrolled.logits

    def unroll(
        self,
        batch: Batch,
        *,
        observed: jax.Array,
        key: jax.Array | None = None,
        feedback: str = "sample",
        reset_every: int = 0,
        train: bool = False,
    ) -> Unrolled:
        """Goes through a batch, feeding back true responses where observed and its own elsewhere.

        Args:
          batch: B students.
          observed: bool (B, T); all True is teacher forcing, all False free running.
          key: typed key, for feedback 'sample'.
          feedback: 'sample' draws a response, 'threshold' takes 1[p > 0.5], 'expected' feeds p
            itself. No gradient flows through what is fed back.
          reset_every: n > 0 sets the state to zero after steps n + 1, 2 n + 1, ...; the attended
            past stays (the released `evaluate_cut`, n = 30).
          train: dropout.

        Raises:
          ValueError: an unknown feedback, or 'sample' without a key.
        """
        check_choice("feedback", feedback, unrolling.FEEDBACK)
        if feedback == "sample" and key is None:
            raise ValueError("feedback='sample' needs a key; pass one, or choose 'threshold'.")
        cfg = self.config
        vectors = self.question_vectors(batch.questions, batch.concepts, train=train)
        dropout_key = self._dropout_key(train)
        return unrolling.unroll(
            self.cell,
            vectors,
            batch.responses,
            observed,
            scale=(2 * cfg.dim) ** -0.5,
            chunk=cfg.chunk,
            key=key,
            feedback=feedback,
            reset_every=reset_every,
            dropout=None if dropout_key is None else (cfg.dropout_rate, dropout_key),
        )

    def question_vectors(
        self, questions: jax.Array, concepts: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """(..., Q) for questions (...) and concepts (..., C)."""
        cfg = self.config
        features = question_features(
            self.question_table,
            self.concept_table,
            questions,
            concepts,
            cfg.concept_divisor,
            self.variation_table,
        )
        if not cfg.question_mlp:
            return features
        return mlp(self.question_params, features, cfg.dropout_rate, self._dropout_key(train))

    def question_nll(
        self,
        unrolled: Unrolled,
        questions: jax.Array,
        mask: jax.Array,
        *,
        train: bool = False,
    ) -> jax.Array:
        """float (B, T): -log p(q_t) given the state before step t and response t (item 1.3.6); 0
        where not mask."""
        cfg = self.config
        r = unrolled.responses[..., None]
        x = jnp.concatenate([unrolled.states * r, unrolled.states * (1 - r)], -1)
        return class_nll(
            self.ask_params,
            x,
            questions,
            mask,
            squash=cfg.sigmoid_before_ce,
            rate=cfg.dropout_rate,
            key=self._dropout_key(train),
        )

    def value(self, states: jax.Array) -> jax.Array:
        """(...): expected return of the discriminator's states (..., 3 D)."""
        return mlp(self.value_params, states)[..., 0]

    # One step at a time

    def begin(self, batch: Batch) -> StepState:
        """The state before the first step, with room for the T steps of `batch`."""
        rows, length = batch.questions.shape
        dtype = self.question_table.dtype
        return StepState(
            count=jnp.zeros(rows, jnp.int32),
            hidden=jnp.zeros((rows, self.config.dim), dtype),
            keys=jnp.zeros((rows, length + 1, self.config.question_dim), dtype),
            values=jnp.zeros((rows, length + 1, self.config.dim), dtype),
        )

    def predict_step(self, state: StepState, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """(B,): logit of a right response to question (B,) with concepts (B, C)."""
        vector, attended = self._attend(state, question, concepts)
        return self.cell.logit(vector, state.hidden, attended)

    def update_step(
        self, state: StepState, question: jax.Array, concepts: jax.Array, response: jax.Array
    ) -> StepState:
        """The state after response (B,), 0 to 1. Steps beyond T move on but are not attended."""
        vector, attended = self._attend(state, question, concepts)
        hidden = self.cell.update(vector, state.hidden, attended, response)
        rows = jnp.arange(question.shape[0])
        slot = state.count + 1
        return StepState(
            count=slot,
            hidden=hidden,
            keys=state.keys.at[rows, slot].set(vector, mode="drop"),
            values=state.values.at[rows, slot].set(hidden, mode="drop"),
        )

    def _attend(self, state, question, concepts):
        vector = self.question_vectors(question, concepts)
        scores = jnp.einsum("bq,bsq->bs", vector, state.keys) * (2 * self.config.dim) ** -0.5
        seen = jnp.arange(state.keys.shape[1]) <= state.count[:, None]
        weights = nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
        return vector, jnp.einsum("bs,bsd->bd", weights, state.values)

    def _dropout_key(self, train: bool):
        return self.make_rng("dropout") if train and self.config.dropout_rate > 0 else None
