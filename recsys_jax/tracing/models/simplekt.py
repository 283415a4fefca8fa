"""simpleKT: a plain strong baseline (Liu et al., ICLR 2023), checked against pyKT's code."""

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
class SimpleKTConfig:
    """simpleKT; defaults of spec 3.1 [K]. Its loss weights l1-l3 and L2 do nothing in plain mode
    and are left out."""

    embedding_dim: int = 256
    ffn_dim: int = 256
    num_heads: int = 4
    num_blocks: int = 2
    dropout_rate: float = 0.1
    head_dims: tuple[int, ...] = (512, 256)

    def __post_init__(self):
        blocks.check_width(self.embedding_dim, self.num_heads, self.dropout_rate)


class SimpleKT(AttentionModel):
    """Questions with a vector of difficulty attend to earlier answers.

    x_t = c + mu_q * d_c (mu_q a vector, elementwise), y_t = c + g_r, c and d_c means over the
    question's concepts; sinusoidal positions on both; blocks with keys x and values y of earlier
    steps, one projection for keys and queries; the head reads [retrieved ; x without position].
    """

    config: SimpleKTConfig

    @nn.compact
    def _run(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        dim = cfg.embedding_dim
        concept = SetEmbedding(self.num_concepts, dim, name="concept")(batch.concepts)
        variation = SetEmbedding(self.num_concepts, dim, name="concept_variation")(batch.concepts)
        difficulty = QuestionEmbedding(
            self.num_questions, dim, nn.initializers.zeros, name="difficulty"
        )(batch.questions)
        question = concept + difficulty * variation
        answer = concept + ResponseEmbedding(dim, name="response")(batch.responses)
        positions = blocks.sinusoid(batch.questions.shape[1], dim)
        x, y = question + positions, answer + positions
        past = blocks.seen(batch.mask, strict=True)
        for i in range(cfg.num_blocks):
            x = blocks.PostNormBlock(
                cfg.num_heads,
                cfg.ffn_dim,
                cfg.dropout_rate,
                shared_key_query=True,
                name=f"block_{i}",
            )(x, x, y, past, deterministic=not train)
        logits = blocks.Head(cfg.head_dims, cfg.dropout_rate, name="head")(
            jnp.concatenate([x, question], -1), deterministic=not train
        )
        return x, logits
