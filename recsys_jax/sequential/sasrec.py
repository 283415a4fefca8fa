"""SASRec (arXiv 1808.09781) as in the released FuXi-alpha / HSTU comparison (spec 7)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from recsys_jax.sequential.layers import (
    BackboneConfig,
    Dense,
    layer_norm,
    run_blocks,
    softmax_attention,
    xavier_normal,
)
from recsys_jax.sequential.randomness import Dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class SASRecConfig(BackboneConfig):
    """SASRec. ML-1M as released: D 50, 2 layers, 1 head, feed-forward width 50, ReLU."""

    num_heads: int = 1
    ffn_dim: int = 50

    def __post_init__(self):
        super().__post_init__()
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"embedding_dim={self.embedding_dim} is not divisible by num_heads={self.num_heads}"
            )


class SASRecBlock(nn.Module):
    """Q = LN(x); a = MHA(Q, x, x); x = FFN(LN(Q + a)): the residual runs through the norm."""

    config: SASRecConfig
    packed: bool
    deterministic: bool

    @nn.compact
    def __call__(self, x, context):
        cfg = self.config
        rows, n, dim = x.shape
        zeros = nn.initializers.zeros
        train = not self.deterministic

        def project(y, name):
            out = Dense(dim, xavier_normal, zeros, cfg.dtype, name=name)(y)
            return out.reshape(rows, n, cfg.num_heads, dim // cfg.num_heads)

        normed = layer_norm(x, 1e-8)
        with jax.named_scope("attention"):
            attended = softmax_attention(
                project(normed, "q"),
                project(x, "k"),
                project(x, "v"),
                context["segment_ids"],
                dropout_rate=cfg.dropout_rate,
                dropout_rng=self.make_rng("dropout") if train and cfg.dropout_rate else None,
            ).reshape(rows, n, dim)
            attended = Dense(dim, xavier_normal, zeros, cfg.dtype, name="out")(attended)
        with jax.named_scope("ffn"):
            y = layer_norm(normed + attended, 1e-8)
            h = nn.relu(Dense(cfg.ffn_dim, xavier_normal, zeros, cfg.dtype, name="w1")(y))
            h = Dropout(cfg.dropout_rate)(h, self.deterministic)
            h = Dense(dim, xavier_normal, zeros, cfg.dtype, (None, "embed"), name="w2")(h)
            h = Dropout(cfg.dropout_rate)(h, self.deterministic)
            x = (y + h) * (context["segment_ids"] > 0)[..., None].astype(x.dtype)
        return x, None


class SASRec(nn.Module):
    """Items to L2-normalised user vectors after each event, (R, N, D); no time information."""

    config: SASRecConfig
    rows: int

    @nn.compact
    def __call__(self, batch, *, deterministic: bool = True, packed: bool = False):
        # Positions keep the class's own truncated normal: the released code re-initialises all
        # parameters but embeddings here (spec 1.2).
        return run_blocks(
            SASRecBlock,
            self.config,
            self.rows,
            batch,
            packed=packed,
            deterministic=deterministic,
            position_init=nn.initializers.truncated_normal(self.config.embedding_dim**-0.5),
        )
