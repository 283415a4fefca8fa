"""DKT (Piech et al., arXiv 1506.05908) in pyKT's form: an LSTM, one output per concept.

Letters: B students, T steps, C concepts of a question at most, H hidden width.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from recsys_jax.sequential.randomness import Dropout
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.embeddings import Interactions, Readout, check_config
from recsys_jax.tracing.models.recurrent import LSTM


@dataclasses.dataclass(frozen=True, kw_only=True)
class DKTConfig:
    """Widths of pyKT's training script (spec 3.1, tag [K]): 200, 200, dropout 0.2.

    use_questions: question embeddings and question outputs beside the concepts' (ours); without
    them the model cannot tell two questions with the same concepts apart.
    """

    embedding_dim: int = 200
    hidden_dim: int = 200
    dropout_rate: float = 0.2
    use_questions: bool = False

    def __post_init__(self):
        check_config(self, ("embedding_dim", "hidden_dim"), ("dropout_rate",))


class DKT(nn.Module):
    """x_t = Emb(concepts, response) -> LSTM -> dropout -> output of the next question's concepts.

    Deviation from pyKT: concept sets enter and leave as means (see `embeddings`).
    """

    config: DKTConfig
    num_questions: int
    num_concepts: int

    # setup and not @nn.compact: four methods share the parameters.
    def setup(self):
        cfg = self.config
        sizes = (self.num_questions, self.num_concepts)
        self.interactions = Interactions(*sizes, cfg.embedding_dim, cfg.use_questions)
        self.lstm = LSTM(cfg.embedding_dim, cfg.hidden_dim)
        self.readout = Readout(*sizes, cfg.hidden_dim, cfg.use_questions)
        self.dropout = Dropout(cfg.dropout_rate)

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): logit of each response from the true responses before it."""
        states = self.dropout(self.states(batch), deterministic=not train)
        return self.readout(states, batch.questions, batch.concepts)

    def states(self, batch: Batch) -> jax.Array:
        """The hidden state before each step, (B, T, H)."""
        # Steps first, as the recurrence wants the gates, which are much larger than the ids.
        answers = (x.swapaxes(0, 1) for x in (batch.questions, batch.concepts, batch.responses))
        gates = self.interactions.projected(self.lstm.kernel, *answers) + self.lstm.bias
        return self.lstm.states_before(gates)

    def begin(self, batch: Batch):
        """The zero state of B students: (h, c)."""
        return self.lstm.begin(batch.questions.shape[0])

    def predict_step(self, state, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (B,): logit for question (B,) with concepts (B, C)."""
        return self.readout(state[0], question, concepts)

    def update_step(self, state, question, concepts, response):
        """The state after response (B,), 0/1 or a probability."""
        x = self.interactions(question, concepts, response)
        return self.lstm.step(state, self.lstm.project(x))
