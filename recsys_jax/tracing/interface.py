"""What every knowledge-tracing model is: teacher-forced logits, and a way to roll on by itself.

Letters: B students, T steps.
"""

from __future__ import annotations

from typing import Protocol

import jax

from recsys_jax.tracing.batch import Batch


class TracingModel(Protocol):
    """A Flax module, or whatever else answers as one.

    Causality is a contract: logit t may read questions and concepts up to t, and responses up to
    t - 1, never more.
    """

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): logit that response t is right, given the true responses before it.

        Further losses (regularisation, reconstruction) are sown into the collection 'losses' as
        scalars that are already weighted. train: dropout, from the rng 'dropout'.
        """
        ...


class SteppedModel(TracingModel, Protocol):
    """A model with a state that moves on by one answer; others are rolled out by whole passes.

    Both methods are Flax methods (`model.apply(variables, ..., method='predict_step')`).
    """

    def begin(self, batch: Batch):
        """The state before the first step; a pytree whose leaves begin with B."""
        ...

    def predict_step(self, state, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (B,): logit for question (B,), concepts (B, C), from the state."""
        ...

    def update_step(self, state, question: jax.Array, concepts: jax.Array, response: jax.Array):
        """The state after response (B,), which may be a probability in [0, 1]."""
        ...
