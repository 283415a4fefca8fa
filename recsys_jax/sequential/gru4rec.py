"""GRU4Rec (arXiv 1511.06939) with the common sampled softmax in place of its ranking losses.

The FuXi-alpha paper gives no hyper-parameters for it; the loss and the L2-normalised output are
those of the other models here, so that the comparison is of encoders (spec 7).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import (
    BackboneConfig,
    Dense,
    InputLayer,
    l2_normalize,
    partitioned,
    xavier_uniform,
)
from recsys_jax.sequential.randomness import Dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRU4RecConfig(BackboneConfig):
    """GRU4Rec: `num_layers` GRU layers of `hidden_dim`, then a projection to the item width."""

    num_layers: int = 1
    hidden_dim: int = 50


class GRU(nn.Module):
    """One GRU layer over packed rows, (R, N, D) -> (R, N, hidden); gate order r, z, n.

    The input projections of all steps are one matrix product; only the recurrent product stays in
    the scan. The state is zeroed where a user's sequence begins (`starts` (R, N) bool).
    Equations: Cho et al. (arXiv 1406.1078) in the cuDNN form, n = tanh(W x + b + r (U h + c)).
    """

    hidden_dim: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, starts: jax.Array) -> jax.Array:
        hidden = self.hidden_dim
        zeros = nn.initializers.zeros
        gates = Dense(3 * hidden, xavier_uniform, zeros, self.dtype, name="input")(x)
        recurrent = self.param(
            "recurrent",
            partitioned(nn.initializers.orthogonal(column_axis=-1), None, None),
            (hidden, 3 * hidden),
        ).astype(self.dtype)
        bias_n = self.param("recurrent_bias", partitioned(zeros, None), (hidden,))
        bias_n = bias_n.astype(self.dtype)

        # Gate by gate, not as slices of one product: XLA on CPU would compute the wide sigmoid once
        # per slice, which makes a step more than twice as slow, forward and backward.
        gate_r, gate_z, gate_n = jnp.split(gates.swapaxes(0, 1), 3, axis=-1)
        recurrent_r, recurrent_z, recurrent_n = jnp.split(recurrent, 3, axis=-1)

        def step(h, inputs):
            r, z, n, start = inputs
            h = jnp.where(start[:, None], 0, h)
            reset = nn.sigmoid(r + h @ recurrent_r)
            update = nn.sigmoid(z + h @ recurrent_z)
            new = jnp.tanh(n + reset * (h @ recurrent_n + bias_n))
            h = (1 - update) * new + update * h
            return h, h

        h0 = jnp.zeros((x.shape[0], hidden), self.dtype)
        _, states = jax.lax.scan(step, h0, (gate_r, gate_z, gate_n, starts.T))
        return states.swapaxes(0, 1)


def run_gru(
    config, rows: int, batch, deterministic: bool, num_layers: int, hidden_dim: int
) -> jax.Array:
    """Input layer without positions and a stack of GRU layers: states (R, N, hidden)."""
    x = InputLayer(config, rows, None, name="input")(batch, deterministic)
    starts = batch["positions"] == 0
    for layer in range(num_layers):
        x = GRU(hidden_dim, config.dtype, name=f"gru_{layer}")(x, starts)
    return x


class GRU4Rec(nn.Module):
    """Items to L2-normalised user vectors after each event, (R, N, D)."""

    config: GRU4RecConfig
    rows: int

    @nn.compact
    def __call__(self, batch, *, deterministic: bool = True, packed: bool = False):
        cfg = self.config
        x = run_gru(cfg, self.rows, batch, deterministic, cfg.num_layers, cfg.hidden_dim)
        x = Dropout(cfg.dropout_rate)(x, deterministic)
        x = Dense(cfg.embedding_dim, dtype=cfg.dtype, axes=(None, "embed"), name="out")(x)
        x = l2_normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        return jnp.where((batch["segment_ids"] > 0)[..., None], x, 0)
