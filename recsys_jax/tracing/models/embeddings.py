"""Embeddings of questions, concept sets and answers, shared by the tracing models.

A question with several concepts enters as the mean over its concept set, where pyKT has one row per
concept and averages predictions afterwards: one row per question cannot leak the answer of a
question into itself. Ids run from 1; id 0 (padding, or an unknown question) contributes nothing.

Letters: B students, T steps, C concepts of a question at most, D width; `...` is (B,) or (B, T).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned

normal = nn.initializers.normal(1.0)  # PyTorch's default for embeddings


def check_config(config, positive: tuple[str, ...], rates: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless the fields `positive` are > 0 and `rates` lie in [0, 1)."""
    for name in positive:
        if getattr(config, name) <= 0:
            raise ValueError(
                f"{type(config).__name__}.{name}={getattr(config, name)} must be greater than 0"
            )
    for name in rates:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ValueError(
                f"{type(config).__name__}.{name}={getattr(config, name)} must lie in [0, 1)"
            )


def set_weights(concepts: jax.Array) -> jax.Array:
    """float32 (..., C): 1/|C_q| at each concept of the set, 0 in empty slots."""
    real = (concepts > 0).astype(jnp.float32)
    return real / jnp.maximum(real.sum(-1, keepdims=True), 1)


def set_mean(values: jax.Array, concepts: jax.Array) -> jax.Array:
    """The mean over each concept set of per-slot values: (..., C) -> (...)."""
    return (values * set_weights(concepts)).sum(-1)


def set_embedding(table: jax.Array, concepts: jax.Array, rows: jax.Array | None = None):
    """The mean over each concept set of table rows (R, D): (..., C) -> (..., D); 0 for no concept.

    rows: the rows to take where they are not the concepts' own ids.
    """
    rows = concepts if rows is None else rows
    weights = set_weights(concepts)
    # Slot by slot: no array of shape (..., C, D), and its transpose scatters (..., D) rows.
    slots = range(concepts.shape[-1])
    return sum(jnp.take(table, rows[..., c], axis=0) * weights[..., c, None] for c in slots)


def row(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Table rows (R, D) of ids (...): (..., D); 0 for id 0."""
    return jnp.take(table, ids, axis=0) * (ids > 0)[..., None]


class Questions(nn.Module):
    """Question vectors (..., 2D) = [mean of the concept embeddings ; question embedding].

    Source: IEKT's released code, and AdvKT's paper (spec 1.3) for the concatenation.
    """

    num_questions: int
    num_concepts: int
    dim: int

    def setup(self):
        init = partitioned(normal, "items", "embed")
        self.question = self.param("question", init, (self.num_questions + 1, self.dim))
        self.concept = self.param("concept", init, (self.num_concepts + 1, self.dim))

    def __call__(self, questions: jax.Array, concepts: jax.Array) -> jax.Array:
        return jnp.concatenate(
            [set_embedding(self.concept, concepts), row(self.question, questions)], -1
        )


class Interactions(nn.Module):
    """Vectors (..., D) of an answer: the concept set's mean, of one table per response.

    A response between 0 and 1 (expected feedback) interpolates linearly between the tables of wrong
    and right. `use_questions` adds a question embedding per response (ours; pyKT's DKT has none).
    """

    num_questions: int
    num_concepts: int
    dim: int
    use_questions: bool = False

    def setup(self):
        # The row of (response, id) is response * (size + 1) + id, as in pyKT.
        init = partitioned(normal, "items", "embed")
        self.concept = self.param("concept", init, (2 * (self.num_concepts + 1), self.dim))
        if self.use_questions:
            self.question = self.param("question", init, (2 * (self.num_questions + 1), self.dim))

    def __call__(self, questions, concepts, responses: jax.Array) -> jax.Array:
        table = self.question if self.use_questions else None
        return self._answers(self.concept, table, questions, concepts, responses)

    def projected(self, kernel: jax.Array, questions, concepts, responses) -> jax.Array:
        """self(...) @ kernel (D, W), (..., W), by the cheaper of two orders.

        The mean over a concept set is linear, so a table of few rows may be multiplied in place of
        the answers of a large batch.
        """
        if self.use_questions or 2 * len(self.concept) > questions.size:
            return self(questions, concepts, responses) @ kernel
        return self._answers(self.concept @ kernel, None, questions, concepts, responses)

    def _answers(self, concept_table, question_table, questions, concepts, responses):
        def of(response):
            rows = concepts + response[..., None] * (self.num_concepts + 1)
            x = set_embedding(concept_table, concepts, rows)
            if question_table is not None:
                rows = questions + response * (self.num_questions + 1)
                x = x + jnp.take(question_table, rows, axis=0) * (questions > 0)[..., None]
            return x

        if not jnp.issubdtype(responses.dtype, jnp.floating):
            return of(responses)
        wrong, right = of(jnp.zeros_like(questions)), of(jnp.ones_like(questions))
        return wrong + responses[..., None] * (right - wrong)


class Readout(nn.Module):
    """Logits (...) of the asked questions from states (..., H).

    The mean over the concept set of the outputs that a linear layer with one output per concept
    has; `use_questions` adds an output per question.
    """

    num_questions: int
    num_concepts: int
    dim: int
    use_questions: bool = False

    def setup(self):
        init = partitioned(torch_uniform(self.dim), "items", "embed")
        bias = partitioned(torch_uniform(self.dim), "items")
        self.kernel = self.param("kernel", init, (self.num_concepts + 1, self.dim))
        self.bias = self.param("bias", bias, (self.num_concepts + 1,))
        if self.use_questions:
            shape = (self.num_questions + 1, self.dim)
            self.question_kernel = self.param("question_kernel", init, shape)
            self.question_bias = self.param("question_bias", bias, shape[:1])

    def __call__(self, states: jax.Array, questions: jax.Array, concepts: jax.Array) -> jax.Array:
        kernel = set_embedding(self.kernel, concepts)
        logits = (states * kernel).sum(-1) + set_mean(jnp.take(self.bias, concepts, 0), concepts)
        if self.use_questions:
            output = (states * row(self.question_kernel, questions)).sum(-1)
            output += jnp.take(self.question_bias, questions, axis=0)
            logits = logits + jnp.where(questions > 0, output, 0)
        return logits

    def every_concept(self, states: jax.Array) -> jax.Array:
        """Logits of all concepts (..., num_concepts), without the outputs of questions."""
        return states @ self.kernel[1:].T + self.bias[1:]


def torch_uniform(fan_in: int):
    """PyTorch's default for weights and biases of a linear layer: uniform in +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
