"""Direct multi-step DKT, reconstructed: predicts k answers ahead without feeding answers back.

DKT2 (arXiv 2501.14256) defines the task (predict step t + k from the state after step t; spec 3.4);
its xLSTM encoder and its heads are not rebuilt. Encoder: DKT's LSTM. Heads: ours.

Letters: B students, T steps, C concepts of a question at most, H hidden width, K horizons.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.dkt import DKT, DKTConfig
from recsys_jax.tracing.models.embeddings import Questions, check_config, normal
from recsys_jax.tracing.models.losses import bce
from recsys_jax.tracing.models.recurrent import torch_dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class DKT2MultiConfig(DKTConfig):
    """DKT's encoder and a head per horizon 1..horizons (DKT2 reports up to 20; spec 3.4).

    direct_weight: of the mean loss over horizons 1..K beside the one-step loss. head_dim: width of
    the heads' hidden layer. use_questions is on: the heads read the asked question.
    """

    use_questions: bool = True
    horizons: int = 20
    head_dim: int = 64
    direct_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_config(self, ("horizons", "head_dim"))


class DKT2Multi(DKT):
    """DKT with logit_{t+k | t} = w ReLU(A h_t + B v_{t+k} + e_k), v the asked question's vector.

    `__call__` and stepping are DKT's one-step prediction; `predict_ahead` is the direct one.
    """

    config: DKT2MultiConfig

    def setup(self):
        super().setup()
        cfg = self.config
        self.asked = Questions(self.num_questions, self.num_concepts, cfg.head_dim)
        self.from_state, self.from_question = torch_dense(cfg.head_dim), torch_dense(cfg.head_dim)
        table = partitioned(normal, None, "embed")
        self.horizon = self.param("horizon", table, (cfg.horizons + 1, cfg.head_dim))
        self.head = torch_dense(1)

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): one-step logits; training sows the direct loss into 'losses'."""
        states = self.dropout(self.states(batch), deterministic=not train)
        if train:
            self.sow("losses", "direct", self.config.direct_weight * self._loss(batch, states))
        elif self.is_initializing():
            self._direct(states, batch, jnp.ones_like(batch.questions))
        return self.readout(states, batch.questions, batch.concepts)

    def predict_ahead(self, batch: Batch, observed: jax.Array) -> jax.Array:
        """float32 (B, T): logits that read the first `observed` (B,) responses and no later ones.

        One-step logits up to step `observed`, direct ones after it; horizons beyond K share the
        last horizon's embedding.
        """
        states = self.states(batch)
        one_step = self.readout(states, batch.questions, batch.concepts)
        # states[:, t] has read t answers; index observed may be T when all are observed.
        index = jnp.minimum(observed, batch.questions.shape[1] - 1)[:, None]
        state = jnp.take_along_axis(states, index[..., None], axis=1)
        ahead = jnp.arange(batch.questions.shape[1])[None] - observed[:, None] + 1
        direct = self._direct(state, batch, ahead)
        return jnp.where(ahead <= 1, one_step, direct)

    def _direct(self, states, batch: Batch, ahead: jax.Array) -> jax.Array:
        """Logits (B, T) from states (B, T or 1, H) for the batch's questions at horizons (B, T)."""
        asked = self.from_question(self.asked(batch.questions, batch.concepts))
        return self._head(self.from_state(states), asked, ahead)

    def _head(self, from_state, from_question, ahead):
        horizon = jnp.take(self.horizon, jnp.clip(ahead, 0, self.config.horizons), axis=0)
        return self.head(nn.relu(from_state + from_question + horizon))[..., 0]

    def _loss(self, batch: Batch, states: jax.Array) -> jax.Array:
        """Mean BCE over all pairs (t, t + k - 1), k = 1..K, of which the later step is real."""
        asked = self.from_question(self.asked(batch.questions, batch.concepts))
        from_state = self.from_state(states)
        total, count = 0.0, 0
        steps = batch.questions.shape[1]
        for k in range(1, min(self.config.horizons, steps) + 1):
            # The state before step t predicts step t + k - 1.
            end, start = steps - (k - 1), k - 1
            ahead = jnp.full((1, 1), k)
            logits = self._head(from_state[:, :end], asked[:, start:], ahead)
            real = batch.mask[:, start:]
            total += jnp.where(real, bce(logits, batch.responses[:, start:]), 0).sum()
            count += real.sum()
        return total / jnp.maximum(count, 1)
