"""SAKT: self-attentive knowledge tracing (Pandey and Karypis, 2019), as in pyKT (spec 3.1)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from recsys_jax.sequential.layers import partitioned
from recsys_jax.sequential.randomness import Dropout
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models import attention_blocks as blocks
from recsys_jax.tracing.models.attention_inputs import QuestionEmbedding, SetEmbedding
from recsys_jax.tracing.models.attention_model import AttentionModel
from recsys_jax.tracing.models.embeddings import Interactions, normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAKTConfig:
    """SAKT; defaults are pyKT's (its code, spec 3.1 [K]).

    use_questions: question embeddings beside the concepts' (ours); without them, as in pyKT, two
    questions with the same concepts look alike.
    """

    embedding_dim: int = 256
    num_heads: int = 8
    num_blocks: int = 1
    dropout_rate: float = 0.2
    max_len: int = 200
    use_questions: bool = False

    def __post_init__(self):
        blocks.check_width(self.embedding_dim, self.num_heads, self.dropout_rate)


class SAKT(AttentionModel):
    """The next exercise attends to earlier answers; keys and values carry learned positions.

    logit_t = w . block(query = E[exercise_t], keys = values = E[exercise_s, r_s] + P_s, s < t).
    Further blocks take the outputs up to t of the one before as keys and values and the same
    query, as pyKT does. pyKT does not predict the first answer; here its attention is empty, and
    later blocks also see the first step's output.
    """

    config: SAKTConfig

    @nn.compact
    def _run(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        steps = batch.questions.shape[1]
        blocks.check_length(steps, cfg.max_len)
        dim = cfg.embedding_dim
        query = SetEmbedding(self.num_concepts, dim, name="concept")(batch.concepts)
        if cfg.use_questions:
            query += QuestionEmbedding(self.num_questions, dim, name="question")(batch.questions)
        answers = Interactions(
            self.num_questions, self.num_concepts, dim, cfg.use_questions, name="answer"
        )(batch.questions, batch.concepts, batch.responses)
        positions = self.param("positions", partitioned(normal, None, "embed"), (cfg.max_len, dim))
        keys = answers + positions[:steps]
        for i in range(cfg.num_blocks):
            keys = blocks.PostNormBlock(
                cfg.num_heads, dim, cfg.dropout_rate, causal=True, name=f"block_{i}"
            )(
                query,
                keys,
                keys,
                blocks.seen(batch.mask, strict=i == 0),
                deterministic=not train,
            )
        hidden = Dropout(cfg.dropout_rate)(keys, not train)
        return keys, blocks.Head((), 0.0, name="head")(hidden, deterministic=True)
