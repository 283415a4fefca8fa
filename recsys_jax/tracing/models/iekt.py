"""IEKT (Long et al., SIGIR 2021): individual cognition and acquisition, chosen by REINFORCE.

Read from the authors' released code (github.com/ApexEDM/iekt). The closest ancestor of AdvKT's
generator.

Letters: B students, T steps, C concepts of a question at most, D width.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned
from recsys_jax.sequential.randomness import Dropout
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.embeddings import Questions, check_config, normal
from recsys_jax.tracing.models.recurrent import torch_dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class IEKTConfig:
    """Released defaults (spec 3.1): D 64, one hidden layer, 10 levels, gamma 0.93, lambda 40.

    policy_weight: lambda, of the REINFORCE losses. discount: gamma, of the rewards.
    """

    embedding_dim: int = 64
    hidden_layers: int = 1
    cognition_levels: int = 10
    acquisition_levels: int = 10
    dropout_rate: float = 0.0
    discount: float = 0.93
    policy_weight: float = 40.0

    def __post_init__(self):
        check_config(
            self,
            ("embedding_dim", "hidden_layers", "cognition_levels", "acquisition_levels"),
            ("dropout_rate",),
        )


class MLP(nn.Module):
    """The released `funcs(n, i, o)`: n times (i -> i, ReLU), dropout, i -> o."""

    features: int
    hidden_layers: int
    dropout_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        for layer in range(self.hidden_layers):
            x = nn.relu(torch_dense(width, name=f"hidden_{layer}")(x))
        x = Dropout(self.dropout_rate)(x, deterministic=not train)
        return torch_dense(self.features, name="out")(x)


def choose(module: nn.Module, scores: jax.Array, train: bool) -> jax.Array:
    """int32 (B,): a sample of softmax(scores (B, L)) in training, else the likeliest level."""
    if train:
        return jax.random.categorical(module.make_rng("dropout"), scores)
    return scores.argmax(-1)


def log_probability(scores: jax.Array, choice: jax.Array) -> jax.Array:
    """float32 (B,): log softmax(scores (B, L)) at the choice (B,)."""
    return jnp.take_along_axis(nn.log_softmax(scores), choice[:, None], axis=-1)[:, 0]


class IEKT(nn.Module):
    """v = [mean concept ; question]; a chosen cognition level helps predict, a chosen acquisition
    level enters the GRU: x = [v r ; v (1-r)] + [s (1-r) ; s r], h <- GRU(x, h).

    Deviation: outside training both choices are the likeliest level; the released evaluation
    samples them, which makes two evaluations of one model differ.
    """

    config: IEKTConfig
    num_questions: int
    num_concepts: int

    def setup(self):
        cfg, dim = self.config, self.config.embedding_dim
        self.embed = Questions(self.num_questions, self.num_concepts, dim)
        table = partitioned(normal, None, "embed")
        self.cognition = self.param("cognition", table, (cfg.cognition_levels, 2 * dim))
        self.acquisition = self.param("acquisition", table, (cfg.acquisition_levels, 2 * dim))

        def mlp(features):
            return MLP(features, cfg.hidden_layers, cfg.dropout_rate)

        self.choose_cognition = mlp(cfg.cognition_levels)
        self.choose_acquisition = mlp(cfg.acquisition_levels)
        self.predictor = mlp(1)
        self.gru = nn.GRUCell(dim)

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): logit of each response from the true responses before it.

        Training samples the levels (rng 'dropout') and sows the REINFORCE loss into 'losses'.
        """
        responses = batch.responses.astype(jnp.float32)
        v = self.embed(batch.questions, batch.concepts)

        def step(module, h, inputs):
            v, r = inputs
            logit, log_cognition = module._predict(h, v, train)
            h, log_acquisition = module._update(h, v, logit, r, train)
            return h, (logit, log_cognition + log_acquisition)

        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            in_axes=1,
            out_axes=1,
        )
        _, (logits, log_choices) = scan(self, self.begin(batch), (v, responses))
        if train:
            loss = policy_loss(log_choices, logits, responses, batch.mask, self.config.discount)
            self.sow("losses", "policy", self.config.policy_weight * loss)
        return logits

    def begin(self, batch: Batch) -> jax.Array:
        """The zero state, (B, D)."""
        return jnp.zeros((batch.questions.shape[0], self.config.embedding_dim))

    def predict_step(self, state, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (B,): logit for question (B,) with concepts (B, C)."""
        return self._predict(state, self.embed(question, concepts), False)[0]

    def update_step(self, state, question, concepts, response):
        """The state after response (B,), 0/1 or a probability."""
        v = self.embed(question, concepts)
        logit, _ = self._predict(state, v, False)
        return self._update(state, v, logit, response.astype(jnp.float32), False)[0]

    def _predict(self, h, v, train: bool):
        """Logits (B,) and the log probability of the chosen cognition level, (B,)."""
        scores = self.choose_cognition(jnp.concatenate([v, h], -1), train)
        level = choose(self, scores, train)
        x = jnp.concatenate([h, v, jnp.take(self.cognition, level, axis=0)], -1)
        return self.predictor(x, train)[:, 0], log_probability(scores, level)

    def _update(self, h, v, logit, response, train: bool):
        """The next state (B, D) and the log probability of the chosen acquisition level, (B,)."""
        hv, r = jnp.concatenate([h, v], -1), response[:, None]
        guess = (logit > 0).astype(hv.dtype)[:, None]
        parts = [hv * r, hv * (1 - r), hv * guess, hv * (1 - guess)]
        scores = self.choose_acquisition(jnp.concatenate(parts, -1), train)
        level = choose(self, scores, train)
        s = jnp.take(self.acquisition, level, axis=0)
        x = jnp.concatenate([v * r + s * (1 - r), v * (1 - r) + s * r], -1)
        return self.gru(h, x)[0], log_probability(scores, level)


def policy_loss(log_choices, logits, responses, mask, discount: float) -> jax.Array:
    """REINFORCE: the mean over real steps of -log pi times the discounted rewards from there on.

    All (B, T); log_choices: log probability of both choices. The reward of a step is
    1[the thresholded prediction is right] / (the student's number of steps), without a baseline.
    """
    lengths = jnp.maximum(mask.sum(1, keepdims=True), 1)
    right = (logits > 0) == (responses > 0.5)
    rewards = jnp.where(mask & right, 1.0, 0.0) / lengths

    def back(total, reward):
        total = reward + discount * total
        return total, total

    _, returns = jax.lax.scan(back, jnp.zeros(mask.shape[0]), rewards.T, reverse=True)
    losses = -log_choices * jax.lax.stop_gradient(returns.T)
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1)
