"""SAINT: an encoder of exercises and a decoder of responses (Choi et al., 2020), as in pyKT."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned
from recsys_jax.sequential.randomness import Dropout
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models import attention_blocks as blocks
from recsys_jax.tracing.models.attention_inputs import (
    QuestionEmbedding,
    ResponseEmbedding,
    SetEmbedding,
)
from recsys_jax.tracing.models.attention_model import AttentionModel
from recsys_jax.tracing.models.embeddings import normal


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAINTConfig:
    """SAINT; defaults are pyKT's (spec 3.1 [K]; of its 2-4 blocks the grid's middle, 2)."""

    embedding_dim: int = 256
    num_heads: int = 8
    num_blocks: int = 2  # of the encoder, and as many of the decoder
    dropout_rate: float = 0.2
    max_len: int = 200

    def __post_init__(self):
        blocks.check_width(self.embedding_dim, self.num_heads, self.dropout_rate)


class _Sublayer(nn.Module):
    """Dropout(f(n)) + n with n = LN(x): the skip is taken after the norm, as in pyKT."""

    config: SAINTConfig
    kind: str  # self | cross | ffn
    deterministic: bool

    @nn.compact
    def __call__(self, x, mask=None, memory=None):
        cfg = self.config
        if self.kind == "cross":
            # pyKT norms the encoder's output here, the decoder's stream not.
            memory = blocks.layer_norm("norm")(memory)
        else:
            x = blocks.layer_norm("norm")(x)
        if self.kind == "ffn":
            update = blocks.FeedForward(cfg.embedding_dim, cfg.dropout_rate, name="ffn")(
                x, deterministic=self.deterministic
            )
        else:
            keys = x if memory is None else memory
            update = blocks.MultiHeadAttention(cfg.num_heads, cfg.dropout_rate, name="attention")(
                x, keys, keys, mask, deterministic=self.deterministic
            )
        return x + Dropout(cfg.dropout_rate)(update, self.deterministic)


class SAINT(AttentionModel):
    """Exercises up to t and responses up to t - 1, each with causal attention, then across.

    Encoder input: question + concepts + position; decoder input: start vector or the previous
    response, + position (the table of positions is one and the same).
    """

    config: SAINTConfig

    @nn.compact
    def _run(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        dim, (rows, steps) = cfg.embedding_dim, batch.questions.shape
        blocks.check_length(steps, cfg.max_len)
        positions = self.param("positions", partitioned(normal, None, "embed"), (cfg.max_len, dim))
        positions = positions[:steps]
        mask = blocks.seen(batch.mask)

        def sublayer(kind, name):
            return _Sublayer(cfg, kind, not train, name=name)

        with jax.named_scope("encoder"):
            x = QuestionEmbedding(self.num_questions, dim, name="question")(batch.questions)
            x += SetEmbedding(self.num_concepts, dim, name="concept")(batch.concepts) + positions
            for i in range(cfg.num_blocks):
                x = sublayer("self", f"encoder_{i}_self")(x, mask)
                x = sublayer("ffn", f"encoder_{i}_ffn")(x)
        with jax.named_scope("decoder"):
            start = self.param("start", partitioned(normal, "embed"), (dim,))
            past = ResponseEmbedding(dim, name="response")(batch.responses[:, : steps - 1])
            y = jnp.concatenate([jnp.broadcast_to(start, (rows, 1, dim)), past], 1) + positions
            for i in range(cfg.num_blocks):
                y = sublayer("self", f"decoder_{i}_self")(y, mask)
                y = sublayer("cross", f"decoder_{i}_cross")(y, mask, x)
                y = sublayer("ffn", f"decoder_{i}_ffn")(y)
        hidden = Dropout(cfg.dropout_rate)(y, not train)
        return y, blocks.Head((), 0.0, name="head")(hidden, deterministic=True)
