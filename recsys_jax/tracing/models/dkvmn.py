"""DKVMN (Zhang et al., arXiv 1611.08108) in pyKT's form: static keys, a value memory per student.

Letters: B students, T steps, C concepts of a question at most, N memory slots, D width.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned
from recsys_jax.sequential.randomness import Dropout
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.embeddings import (
    Interactions,
    check_config,
    normal,
    row,
    set_embedding,
)
from recsys_jax.tracing.models.recurrent import checkpointed_scan, torch_dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class DKVMNConfig:
    """Widths of pyKT's training script (spec 3.1, tag [K]): 200, 50 slots, dropout 0.2.

    use_questions: question embeddings beside the concepts', in keys and answers (ours).
    """

    embedding_dim: int = 200
    memory_size: int = 50
    dropout_rate: float = 0.2
    use_questions: bool = False

    def __post_init__(self):
        check_config(self, ("embedding_dim", "memory_size"), ("dropout_rate",))


def read(memory: jax.Array, weights: jax.Array) -> jax.Array:
    """What the weights (B, N) read from the memory (B, N, D): (B, D)."""
    return jnp.einsum("bn,bnd->bd", weights, memory)


def write(memory: jax.Array, weights, erase, add) -> jax.Array:
    """M (1 - w e^T) + w a^T: the memory after an answer; weights (B, N), erase and add (B, D)."""
    w = weights[..., None]
    return memory * (1 - w * erase[:, None]) + w * add[:, None]


class DKVMN(nn.Module):
    """Keys weigh slots; a summary of the read and the key predicts; the answer erases and adds.

    w = softmax(k M_k^T), f = tanh(W [sum w M_v ; k]), logit = W f;
    e = sigmoid(W_e v), a = tanh(W_a v), M_v <- M_v (1 - w e^T) + w a^T.
    """

    config: DKVMNConfig
    num_questions: int
    num_concepts: int

    def setup(self):
        cfg, sizes = self.config, (self.num_questions, self.num_concepts)
        dim = cfg.embedding_dim
        table = partitioned(normal, "items", "embed")
        self.key_embedding = self.param("key_embedding", table, (self.num_concepts + 1, dim))
        if cfg.use_questions:
            shape = (self.num_questions + 1, dim)
            self.question_embedding = self.param("question_embedding", table, shape)
        self.interactions = Interactions(*sizes, dim, cfg.use_questions)
        slots = partitioned(nn.initializers.normal((2 / dim) ** 0.5), None, "embed")
        self.memory_keys = self.param("memory_keys", slots, (cfg.memory_size, dim))
        self.memory_start = self.param("memory_start", slots, (cfg.memory_size, dim))
        self.summary, self.output = torch_dense(dim), torch_dense(1)
        self.erase, self.add = torch_dense(dim), torch_dense(dim)
        self.dropout = Dropout(cfg.dropout_rate)

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): logit of each response from the true responses before it."""
        key, weights = self._keys(batch.questions, batch.concepts)
        x = self.interactions(batch.questions, batch.concepts, batch.responses)
        erase, add = self._writes(x)

        def step(memory, inputs):
            w, e, a = inputs
            return write(memory, w, e, a), read(memory, w)

        # Only reads and writes are in the scan; a memory per step would be T times B x N x D.
        inputs = jax.tree.map(lambda y: y.swapaxes(0, 1), (weights, erase, add))
        _, reads = checkpointed_scan(step, self.begin(batch), inputs, batch.questions.shape[1])
        return self._logits(reads.swapaxes(0, 1), key, train)

    def begin(self, batch: Batch) -> jax.Array:
        """The learned first memory, (B, N, D)."""
        shape = (batch.questions.shape[0], *self.memory_start.shape)
        return jnp.broadcast_to(self.memory_start, shape)

    def predict_step(self, state, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (B,): logit for question (B,) with concepts (B, C)."""
        key, weights = self._keys(question, concepts)
        return self._logits(read(state, weights), key, False)

    def update_step(self, state, question, concepts, response):
        """The memory after response (B,), 0/1 or a probability."""
        _, weights = self._keys(question, concepts)
        erase, add = self._writes(self.interactions(question, concepts, response))
        return write(state, weights, erase, add)

    def _keys(self, questions, concepts):
        key = set_embedding(self.key_embedding, concepts)
        if self.config.use_questions:
            key = key + row(self.question_embedding, questions)
        return key, nn.softmax(key @ self.memory_keys.T)

    def _writes(self, x):
        return nn.sigmoid(self.erase(x)), jnp.tanh(self.add(x))

    def _logits(self, reads, key, train: bool):
        f = jnp.tanh(self.summary(jnp.concatenate([reads, key], -1)))
        return self.output(self.dropout(f, deterministic=not train))[..., 0]
