"""An attention model of knowledge tracing from outside: logits, and the states below them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from recsys_jax.tracing.batch import Batch


class AttentionModel(nn.Module):
    """Base of SAKT, SAINT, AKT and simpleKT; a subclass defines `_run`, which is compact."""

    config: Any
    num_questions: int
    num_concepts: int

    soft_responses = True  # takes probabilities as responses

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """Teacher-forced logits (B, T), see `TracingModel`."""
        return self._run(batch, train)[1]

    def states(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """Output of the last attention block, before the head: (B, T, D)."""
        return self._run(batch, train)[0]

    def _run(self, batch: Batch, train: bool) -> tuple[jax.Array, jax.Array]:
        """(states (B, T, D), logits (B, T))."""
        raise NotImplementedError(f"{type(self).__name__} defines no _run.")
