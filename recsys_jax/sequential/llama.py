"""LLaMa-style sequential recommender: the Transformer++ baseline of FuXi-alpha (spec 7).

Not in the released code; rebuilt from the paper's description (pre-RMSNorm decoder, RoPE, SwiGLU,
same embedding, loss and sizes). The SwiGLU's width is not given: `ffn_multiple` is our choice.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import (
    BackboneConfig,
    Dense,
    rms_norm,
    run_blocks,
    softmax_attention,
)
from recsys_jax.sequential.randomness import Dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(BackboneConfig):
    """LLaMa-style recommender; head_dim must be even for RoPE."""

    num_heads: int = 1
    ffn_multiple: float = 4.0
    rope_base: float = 10_000.0

    def __post_init__(self):
        super().__post_init__()
        if self.embedding_dim % (2 * self.num_heads):
            raise ValueError(
                f"embedding_dim={self.embedding_dim} must be an even multiple of "
                f"num_heads={self.num_heads} (rotary embedding turns pairs)"
            )


def rotary(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding on x (R, N, H, d) by positions (R, N), half-split pairs, float32.

    Source: RoFormer (arXiv 2104.09864), eq. 34.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


class LlamaBlock(nn.Module):
    """x + MHA(RMSNorm(x)) with RoPE, then + SwiGLU(RMSNorm(.))."""

    config: LlamaConfig
    packed: bool
    deterministic: bool

    @nn.compact
    def __call__(self, x, context):
        cfg = self.config
        rows, n, dim = x.shape
        heads = (rows, n, cfg.num_heads, dim // cfg.num_heads)
        with jax.named_scope("attention"):
            normed = rms_norm(x)
            qkv = Dense(3 * dim, dtype=cfg.dtype, name="qkv")(normed)
            q, k, v = (y.reshape(heads) for y in jnp.split(qkv, 3, axis=-1))
            q = rotary(q, context["positions"], cfg.rope_base)
            k = rotary(k, context["positions"], cfg.rope_base)
            attended = softmax_attention(q, k, v, context["segment_ids"]).reshape(rows, n, dim)
            attended = Dense(dim, dtype=cfg.dtype, name="out")(attended)
            x = x + Dropout(cfg.dropout_rate)(attended, self.deterministic)
        with jax.named_scope("ffn"):
            hidden = round(cfg.ffn_multiple * dim)
            normed = rms_norm(x)
            gate = nn.silu(Dense(hidden, dtype=cfg.dtype, name="w1")(normed))
            up = Dense(hidden, dtype=cfg.dtype, name="w3")(normed)
            down = Dense(dim, dtype=cfg.dtype, axes=(None, "embed"), name="w2")(gate * up)
            return x + Dropout(cfg.dropout_rate)(down, self.deterministic), None


class Llama(nn.Module):
    """Items to L2-normalised user vectors after each event, (R, N, D); no time information."""

    config: LlamaConfig
    rows: int

    @nn.compact
    def __call__(self, batch, *, deterministic: bool = True, packed: bool = False):
        return run_blocks(
            LlamaBlock,
            self.config,
            self.rows,
            batch,
            packed=packed,
            deterministic=deterministic,
            position_init=None,
        )
