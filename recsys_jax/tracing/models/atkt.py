"""ATKT (Guo et al., arXiv 2108.04430): attentive LSTM trained on adversarially perturbed inputs.

'Adversarial' is a perturbation of the input embeddings along the gradient, not a second network.

Letters: B students, T steps, C concepts of a question at most, H hidden width.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned
from recsys_jax.sequential.randomness import Dropout
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.embeddings import (
    Readout,
    check_config,
    normal,
    set_embedding,
    torch_uniform,
)
from recsys_jax.tracing.models.losses import masked_bce
from recsys_jax.tracing.models.recurrent import LSTM, lstm_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class ATKTConfig:
    """Released widths (spec 3.1): skill 256, answer 96, hidden and attention 80; dropout pyKT's.

    epsilon: length of the perturbation of a student's whole sequence. adversarial_weight: beta,
    the weight of the loss on perturbed inputs; 0 trains without.
    """

    skill_dim: int = 256
    answer_dim: int = 96
    hidden_dim: int = 80
    attention_dim: int = 80
    dropout_rate: float = 0.2
    epsilon: float = 10.0
    adversarial_weight: float = 0.2

    def __post_init__(self):
        widths = ("skill_dim", "answer_dim", "hidden_dim", "attention_dim", "epsilon")
        check_config(self, widths, ("dropout_rate",))


class Attended(NamedTuple):
    """Where a student stands: LSTM state and running sums of the attention over the past states.

    h, c: (B, H). largest (B, 1), total (B, 1), weighted (B, H): the softmax over the states so far
    in its running form; attended (B, H): its output. cumulative (B, H): the sum of the outputs
    before the last step.
    """

    h: jax.Array
    c: jax.Array
    largest: jax.Array
    total: jax.Array
    weighted: jax.Array
    attended: jax.Array
    cumulative: jax.Array


class ATKT(nn.Module):
    """[skill ; answer], or [answer ; skill] when wrong -> LSTM -> [attended past ; state] -> logit.

    The attention of step t sees states up to t only, and the attended past of step t is the sum of
    the attention outputs before t: pyKT's 'atktfix', because the released softmax runs over the
    whole sequence and so sees the future. Concept sets enter and leave as means (see `embeddings`).
    """

    config: ATKTConfig
    num_questions: int
    num_concepts: int

    def setup(self):
        cfg = self.config
        table = partitioned(normal, "items", "embed")
        self.skills = self.param("skills", table, (self.num_concepts + 1, cfg.skill_dim))
        answers = partitioned(normal, None, "embed")
        self.answers = self.param("answers", answers, (2, cfg.answer_dim))
        self.lstm = LSTM(cfg.skill_dim + cfg.answer_dim, cfg.hidden_dim)
        init, width = torch_uniform(cfg.hidden_dim), cfg.attention_dim
        kernel = partitioned(init, "embed", None)
        self.attention_kernel = self.param("attention_kernel", kernel, (cfg.hidden_dim, width))
        self.attention_bias = self.param("attention_bias", partitioned(init, None), (width,))
        scores = partitioned(torch_uniform(width), None, None)
        self.similarity = self.param("similarity", scores, (width, 1))
        self.readout = Readout(self.num_questions, self.num_concepts, 2 * cfg.hidden_dim)
        self.dropout = Dropout(cfg.dropout_rate)

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): logit of each response from the true responses before it.

        Training sows beta * BCE on perturbed inputs into 'losses'; its dropout mask is the same.
        """
        cfg = self.config
        x = self._inputs(batch.concepts, batch.responses)
        shape = (*batch.questions.shape, 2 * cfg.hidden_dim)
        keep = self.dropout(jnp.ones(shape, x.dtype), deterministic=not train)

        def logits_of(x):
            features = self._features_before(x) * keep
            return self.readout(features, batch.questions, batch.concepts)

        logits = logits_of(x)
        if train and cfg.adversarial_weight:

            def loss(shift):
                return masked_bce(logits_of(x + shift), batch.responses, batch.mask)

            gradient = jax.lax.stop_gradient(jax.grad(loss)(jnp.zeros_like(x)))
            norm = jnp.sqrt((gradient**2).sum((1, 2), keepdims=True))
            adversarial = loss(cfg.epsilon * gradient / jnp.maximum(norm, 1e-16))
            self.sow("losses", "adversarial", cfg.adversarial_weight * adversarial)
        return logits

    def begin(self, batch: Batch) -> Attended:
        """Zero states; a softmax over nothing yet."""
        return self._start(batch.questions.shape[0])

    def predict_step(self, state, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (B,): logit for question (B,) with concepts (B, C)."""
        features = jnp.concatenate([state.cumulative, state.h], -1)
        return self.readout(features, question, concepts)

    def update_step(self, state, question, concepts, response) -> Attended:
        """The state after response (B,), 0/1 or a probability."""
        x = self._inputs(concepts, response)
        return self._cell()(state, self.lstm.project(x))

    def _start(self, batch_size: int) -> Attended:
        h, c = self.lstm.begin(batch_size)
        zero = jnp.zeros_like(h[:, :1])
        return Attended(h, c, zero - jnp.inf, zero, h, h, h)

    def _inputs(self, concepts, responses):
        """(..., skill + answer): the two orders, interpolated by the response."""
        skill = set_embedding(self.skills, concepts)
        wrong, right = (jnp.broadcast_to(a, (*skill.shape[:-1], a.shape[-1])) for a in self.answers)
        r = responses[..., None].astype(skill.dtype)
        return r * jnp.concatenate([skill, right], -1) + (1 - r) * jnp.concatenate(
            [wrong, skill], -1
        )

    def _cell(self):
        """(state, gates) -> state, over arrays alone, so that it may run in a scan."""
        recurrent, similarity = self.lstm.recurrent, self.similarity
        kernel, bias = self.attention_kernel, self.attention_bias

        def cell(state: Attended, gates) -> Attended:
            h, c = lstm_step(recurrent, (state.h, state.c), gates)
            score = jnp.tanh(h @ kernel + bias) @ similarity
            largest = jnp.maximum(state.largest, score)
            decay, weight = jnp.exp(state.largest - largest), jnp.exp(score - largest)
            total = state.total * decay + weight
            weighted = state.weighted * decay + weight * h
            cumulative = state.cumulative + state.attended
            return Attended(h, c, largest, total, weighted, weighted / total, cumulative)

        return cell

    def _features_before(self, x):
        """[attended past ; state] before each step, (B, T, 2H)."""
        cell = self._cell()

        def step(state, gates):
            state = cell(state, gates)
            return state, jnp.concatenate([state.cumulative, state.h], -1)

        gates = self.lstm.project(x).swapaxes(0, 1)
        _, features = jax.lax.scan(step, self._start(x.shape[0]), gates[:-1])
        first = jnp.zeros((x.shape[0], 1, features.shape[-1]), features.dtype)
        return jnp.concatenate([first, features.swapaxes(0, 1)], 1)
