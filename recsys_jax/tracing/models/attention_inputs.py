"""Embedding modules of the attention models, beside those of `embeddings`.

Letters: B students, T steps, C ids of a set at most, D width.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from recsys_jax.sequential.layers import partitioned
from recsys_jax.tracing.models.embeddings import normal, row, set_embedding


class SetEmbedding(nn.Module):
    """ids (B, T, C) of 0..count -> the mean (B, T, D) of the vectors of those that are not 0.

    The published models take one row per concept instead, which leaks (spec 3.3).
    """

    count: int
    dim: int
    init: nn.initializers.Initializer = normal

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init = partitioned(self.init, "items", "embed")
        return set_embedding(self.param("table", init, (self.count + 1, self.dim)), ids)


class QuestionEmbedding(nn.Module):
    """ids (B, T) of 0..count -> vectors (B, T, D); zeros for id 0."""

    count: int
    dim: int
    init: nn.initializers.Initializer = normal

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init = partitioned(self.init, "items", "embed")
        return row(self.param("table", init, (self.count + 1, self.dim)), ids)


class ResponseEmbedding(nn.Module):
    """responses (B, T) -> vector (B, T, D) of wrong, right, or between for a probability."""

    dim: int

    @nn.compact
    def __call__(self, responses: jax.Array) -> jax.Array:
        wrong, right = self.param("table", partitioned(normal, None, "embed"), (2, self.dim))
        p = responses.astype(wrong.dtype)[..., None]
        return (1 - p) * wrong + p * right
