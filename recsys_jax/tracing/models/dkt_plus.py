"""DKT+ (Yeung and Yeung, arXiv 1806.02180): DKT with reconstruction and waviness losses.

Letters: B students, T steps.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.dkt import DKT, DKTConfig
from recsys_jax.tracing.models.losses import masked_bce, masked_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class DKTPlusConfig(DKTConfig):
    """DKT's widths and the weights of the three losses (defaults of pyKT's training script, [K]).

    reconstruction: of the answer just given (the paper's lambda_r). waviness_l1, waviness_l2: of
    the change of all concepts' predictions between steps, absolute and squared (lambda_w1, _w2).
    """

    reconstruction: float = 0.01
    waviness_l1: float = 0.003
    waviness_l2: float = 3.0


class DKTPlus(DKT):
    """DKT whose training adds, in 'losses': reconstruction and waviness, means over real pairs.

    As in pyKT a pair is (answer t, answer t + 1), both real, and waviness is a mean over concepts.
    """

    config: DKTPlusConfig

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): logit of each response from the true responses before it."""
        cfg = self.config
        states = self.dropout(self.states(batch), deterministic=not train)
        if train:
            # states[:, t + 1] is the state after answer t; the last answer has none.
            after, real = states[:, 1:], batch.mask[:, 1:]
            again = self.readout(after, batch.questions[:, :-1], batch.concepts[:, :-1])
            reconstruction = masked_bce(again, batch.responses[:, :-1], real)
            outputs = nn.sigmoid(self.readout.every_concept(after))
            change = jnp.diff(outputs, axis=1)
            l1 = masked_mean(jnp.abs(change).mean(-1), real[:, 1:])
            l2 = masked_mean((change**2).mean(-1), real[:, 1:])
            self.sow("losses", "reconstruction", cfg.reconstruction * reconstruction)
            self.sow("losses", "waviness", cfg.waviness_l1 * l1 + cfg.waviness_l2 * l2)
        return self.readout(states, batch.questions, batch.concepts)
