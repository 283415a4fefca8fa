"""AKT: context-aware attentive knowledge tracing (Ghosh, Heffernan and Lan, 2020), spec 3.1.

Checked against the authors' code (arghosh/AKT, akt.py), in its default of response vectors that
concepts share (`separate_qa` off).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models import attention_blocks as blocks
from recsys_jax.tracing.models.attention_inputs import (
    QuestionEmbedding,
    ResponseEmbedding,
    SetEmbedding,
)
from recsys_jax.tracing.models.attention_model import AttentionModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class AKTConfig:
    """AKT; defaults are the authors' (spec 3.1); pyKT uses ffn_dim 512, 4 blocks.

    rasch: question difficulties mu_q; off is AKT-NR, concepts only. difficulty_l2: weight of
    mu_q^2, see `AKT`.
    """

    embedding_dim: int = 256
    ffn_dim: int = 1024
    num_heads: int = 8
    num_blocks: int = 1  # of the encoder of answers; the retriever has twice as many
    dropout_rate: float = 0.05
    head_dims: tuple[int, ...] = (512, 256)
    rasch: bool = True
    difficulty_l2: float = 1e-5

    def __post_init__(self):
        blocks.check_width(self.embedding_dim, self.num_heads, self.dropout_rate)
        if self.difficulty_l2 < 0:
            raise ValueError(f"difficulty_l2={self.difficulty_l2} must not be negative")


class AKT(AttentionModel):
    """Two encoders with decaying attention and a retriever of past answers.

    Inputs (Rasch embeddings), means over the question's concepts c:
        x_t = c + mu_q d_c                      the question
        y_t = c + g_r + mu_q (f_r + d_c)        the answer
    Answers y pass through n blocks of causal self-attention. Questions x pass through n pairs:
    self-attention up to and with the current question, without a feed-forward part; then
    attention with values y and keys x of earlier steps only. Positions enter by the decay alone.
    The head reads [retrieved ; x].

    Sown loss: difficulty_l2 times the mean over real steps of mu_q^2. The authors add the sum to a
    sum of binary cross-entropies; beside a mean over steps this is the same ratio.
    """

    config: AKTConfig

    @nn.compact
    def _run(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        x, y = self._inputs(batch)
        question = x

        def block(name):
            return blocks.PostNormBlock(
                cfg.num_heads,
                cfg.ffn_dim,
                cfg.dropout_rate,
                shared_key_query=True,
                monotonic=True,
                causal=True,
                name=name,
            )

        mask, past = blocks.seen(batch.mask), blocks.seen(batch.mask, strict=True)
        for i in range(cfg.num_blocks):
            y = block(f"answers_{i}")(y, y, y, mask, deterministic=not train)
        for i in range(cfg.num_blocks):
            x = block(f"questions_{i}")(x, x, x, mask, deterministic=not train, feed_forward=False)
            x = block(f"retriever_{i}")(x, x, y, past, deterministic=not train)
        logits = blocks.Head(cfg.head_dims, cfg.dropout_rate, name="head")(
            jnp.concatenate([x, question], -1), deterministic=not train
        )
        return x, logits

    def _inputs(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Question and answer vectors, (B, T, D) each; sows the loss on mu."""
        cfg = self.config
        size = (self.num_concepts, cfg.embedding_dim)
        x = SetEmbedding(*size, name="concept")(batch.concepts)
        y = x + ResponseEmbedding(cfg.embedding_dim, name="response")(batch.responses)
        if cfg.rasch:
            variation = SetEmbedding(*size, name="concept_variation")(batch.concepts)
            response = ResponseEmbedding(cfg.embedding_dim, name="response_variation")(
                batch.responses
            )
            mu = QuestionEmbedding(self.num_questions, 1, nn.initializers.zeros, name="difficulty")(
                batch.questions
            )
            x = x + mu * variation
            y = y + mu * (response + variation)
            if not self.is_initializing():  # `init` would hand the loss on as a variable
                real = batch.mask.astype(mu.dtype)
                square = jnp.sum(mu[..., 0] ** 2 * real) / jnp.maximum(jnp.sum(real), 1)
                self.sow("losses", "difficulty_l2", cfg.difficulty_l2 * square)
        return x, y
