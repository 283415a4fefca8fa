"""CL4KT: contrastive learning for knowledge tracing (Lee et al., WWW 2022), spec 3.1.

Checked against pyKT's copy of the authors' code (cl4kt.py, without its simpleKT variant).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models import attention_blocks as blocks
from recsys_jax.tracing.models.attention_inputs import SetEmbedding
from recsys_jax.tracing.models.contrastive import ContrastiveConfig, Neighbours, contrastive_loss
from recsys_jax.tracing.models.embeddings import Interactions


@dataclasses.dataclass(frozen=True, kw_only=True)
class CL4KTConfig:
    """CL4KT; hidden 64, 2 blocks, 8 heads, rates and weight .1 of spec 3.1; ffn_dim, head_dims and
    dropout from memory of the authors' configuration.

    contrastive_weight: of the contrastive losses beside the cross-entropy when training; 0 leaves
    them to a pre-training phase (`CL4KT.pretraining_loss`).
    """

    embedding_dim: int = 64
    ffn_dim: int = 1024
    num_heads: int = 8
    num_blocks: int = 2  # of each encoder and of the retriever
    dropout_rate: float = 0.2
    head_dims: tuple[int, ...] = (512, 256)
    contrastive_weight: float = 0.1
    views: ContrastiveConfig = ContrastiveConfig()

    def __post_init__(self):
        blocks.check_width(self.embedding_dim, self.num_heads, self.dropout_rate)
        if self.contrastive_weight < 0:
            raise ValueError(f"contrastive_weight={self.contrastive_weight} must not be negative")


class CL4KT(nn.Module):
    """Encoders of concepts and of answers and a retriever, all with AKT's decaying attention.

    Concepts only, means over the question's set (`embeddings`). The contrastive losses run the same
    encoders over views of the whole sequence (every step sees every step, no feed-forward part, as
    the code does) and compare averages over steps; answers have hard negatives. pyKT's copy feeds
    each block of the hard negative with the embedding, so that only its last block counts; here
    blocks follow one another. The mask token has a vector of its own.

    Sown loss when training: contrastive_weight * (concepts + answers), views from the rng
    'dropout'; without `neighbours` no concept is replaced.
    """

    config: CL4KTConfig
    num_questions: int
    num_concepts: int

    soft_responses = True  # takes probabilities as responses

    # setup and not @nn.compact: predicting and pre-training share the encoders.
    def setup(self):
        cfg = self.config
        # One id more than there are concepts: the mask token.
        self.concept = SetEmbedding(self.num_concepts + 1, cfg.embedding_dim)
        self.answer = Interactions(self.num_questions, self.num_concepts + 1, cfg.embedding_dim)

        def stack():
            return [
                blocks.PostNormBlock(
                    cfg.num_heads,
                    cfg.ffn_dim,
                    cfg.dropout_rate,
                    shared_key_query=True,
                    monotonic=True,
                )
                for _ in range(cfg.num_blocks)
            ]

        self.question_encoder, self.answer_encoder, self.retriever = stack(), stack(), stack()
        self.head = blocks.Head(cfg.head_dims, cfg.dropout_rate, "gelu")

    def __call__(
        self, batch: Batch, *, train: bool = False, neighbours: Neighbours | None = None
    ) -> jax.Array:
        cfg = self.config
        question = self.concept(batch.concepts)
        mask = blocks.seen(batch.mask)
        x = self._through(self.question_encoder, question, mask, train)
        y = self._through(self.answer_encoder, self._answers(batch), mask, train)
        past = blocks.seen(batch.mask, strict=True)
        for block in self.retriever:
            x = block(x, x, y, past, deterministic=not train)
        wanted = self.is_mutable_collection("losses") and not self.is_initializing()
        if train and cfg.contrastive_weight > 0 and wanted:
            loss = self.pretraining_loss(batch, self.make_rng("dropout"), neighbours, train=train)
            self.sow("losses", "contrastive", cfg.contrastive_weight * loss)
        return self.head(jnp.concatenate([x, question], -1), deterministic=not train)

    def pretraining_loss(
        self,
        batch: Batch,
        key: jax.Array,
        neighbours: Neighbours | None = None,
        *,
        train: bool = True,
    ) -> jax.Array:
        """Contrastive losses of concepts and of answers over the same two views, a scalar."""

        def encode(stack, embed):
            def run(view: Batch) -> jax.Array:
                everything = blocks.seen(view.mask, causal=False)
                return self._through(stack, embed(view), everything, train, feed_forward=False)

            return run

        def loss(encoder, hard_negatives):
            return contrastive_loss(
                encoder,
                key,
                batch,
                self.config.views,
                neighbours,
                hard_negatives=hard_negatives,
                num_questions=self.num_questions,
                num_concepts=self.num_concepts,
                mask_tokens=(0, self.num_concepts + 1),
            )

        concepts = encode(self.question_encoder, lambda b: self.concept(b.concepts))
        answers = encode(self.answer_encoder, self._answers)
        return loss(concepts, False) + loss(answers, True)

    def _answers(self, batch: Batch) -> jax.Array:
        return self.answer(batch.questions, batch.concepts, batch.responses)

    def _through(self, stack, x, mask, train, feed_forward=True):
        for block in stack:
            x = block(x, x, x, mask, deterministic=not train, feed_forward=feed_forward)
        return x
