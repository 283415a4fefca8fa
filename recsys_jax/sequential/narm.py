"""NARM (arXiv 1711.04725): a GRU with an additive attention over its own earlier states."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.gru4rec import run_gru
from recsys_jax.sequential.layers import (
    BackboneConfig,
    Dense,
    causal_segment_mask,
    l2_normalize,
    partitioned,
    xavier_uniform,
)
from recsys_jax.sequential.randomness import Dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class NARMConfig(BackboneConfig):
    """NARM: dropouts .25 after the embedding and .5 before the bilinear decoder (spec 7)."""

    num_layers: int = 1
    hidden_dim: int = 50
    dropout_rate: float = 0.25
    decoder_dropout_rate: float = 0.5
    block_columns: int = 32  # query columns at a time: bounds the (R, block, N, hidden) tensor


def additive_attention(
    queries: jax.Array, keys: jax.Array, score: jax.Array, states: jax.Array, mask: jax.Array, block
) -> jax.Array:
    """c_t = sum_j score . sigmoid(queries_t + keys_j) states_j over j allowed by mask (R, N, N).

    No softmax (NARM eq. 8). Runs `block` query columns at a time and recomputes in the backward
    pass, so that (R, N, N, hidden) never exists.
    """
    n = queries.shape[1]

    @jax.checkpoint
    def one(q, k, h, m):
        hidden_RTNH = nn.sigmoid(q[:, :, None] + k[:, None])
        weights = jnp.einsum("btnh,h->btn", hidden_RTNH, score) * m
        return jnp.einsum("btn,bnh->bth", weights, h)

    out = []
    for start in range(0, n, block):
        stop = min(start + block, n)  # a block of queries sees no key behind its own end
        m = mask[:, start:stop, :stop].astype(states.dtype)
        out.append(one(queries[:, start:stop], keys[:, :stop], states[:, :stop], m))
    return jnp.concatenate(out, axis=1)


class NARM(nn.Module):
    """c = [h_t ; sum_j a_tj h_j]; user vector = B c, L2-normalised, (R, N, D)."""

    config: NARMConfig
    rows: int

    @nn.compact
    def __call__(self, batch, *, deterministic: bool = True, packed: bool = False):
        cfg = self.config
        states = run_gru(cfg, self.rows, batch, deterministic, cfg.num_layers, cfg.hidden_dim)
        score = self.param(
            "score",
            partitioned(nn.initializers.normal(cfg.hidden_dim**-0.5), None),
            (cfg.hidden_dim,),
        ).astype(cfg.dtype)
        local = additive_attention(
            Dense(cfg.hidden_dim, xavier_uniform, dtype=cfg.dtype, name="a1")(states),
            Dense(cfg.hidden_dim, xavier_uniform, dtype=cfg.dtype, name="a2")(states),
            score,
            states,
            causal_segment_mask(batch["segment_ids"]),
            cfg.block_columns,
        )
        c = jnp.concatenate([states, local], axis=-1)
        c = Dropout(cfg.decoder_dropout_rate)(c, deterministic)
        x = Dense(cfg.embedding_dim, dtype=cfg.dtype, axes=(None, "embed"), name="decoder")(c)
        x = l2_normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        return jnp.where((batch["segment_ids"] > 0)[..., None], x, 0)
