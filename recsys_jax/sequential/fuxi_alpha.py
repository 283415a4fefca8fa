"""FuXi-alpha (arXiv 2502.03036): three attention channels and a multi-stage feed-forward network.

Defaults follow the released code; every known difference between paper and code is an option
(docs/fuxi_alpha.md). Shapes: R rows, N columns, D width, H heads, C channels.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.kernels.silu_attention import silu_attention
from recsys_jax.sequential.layers import (
    BackboneConfig,
    Dense,
    check_choice,
    rms_norm,
    run_blocks,
    torch_linear_bias,
    xavier_uniform,
)
from recsys_jax.sequential.randomness import Dropout
from recsys_jax.sequential.relative_bias import RelativeBias, query_times, semantic_factor

CHANNELS = ("position", "time", "semantic")  # the order in which the released code concatenates


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuXiAlphaConfig(BackboneConfig):
    """FuXi-alpha. ML-1M base as released: D 50, 2 layers, 1 head of 50, ffn_multiple 1."""

    num_heads: int = 1
    qk_dim: int = 50  # per head
    v_dim: int = 50  # per head
    ffn_multiple: float = 1.0  # hidden width / D of the SwiGLU; released: 1 (ML-1M), 4 (ML-20M)
    single_stage_ffn: bool = False  # True: ablation "w/o MFFN", drops the SwiGLU stage
    channels: tuple[str, ...] = CHANNELS  # ablations: any non-empty subset
    time_difference: str = "request"  # request (code: ts[i+1] - ts[j]) | items (paper: t_i - t_j)
    semantic_divisor: str = "slots"  # slots (code: constant n) | length (the user's own length)

    def __post_init__(self):
        super().__post_init__()
        unknown = set(self.channels) - set(CHANNELS)
        if unknown or not self.channels:
            raise ValueError(f"channels={self.channels} must be a non-empty subset of {CHANNELS}")
        check_choice("time_difference", self.time_difference, ("request", "items"))
        check_choice("semantic_divisor", self.semantic_divisor, ("slots", "length"))


class FuXiAlphaBlock(nn.Module):
    """One block: adaptive multi-channel self-attention, then MFFN (spec section 0)."""

    config: FuXiAlphaConfig
    packed: bool
    deterministic: bool

    @nn.compact
    def __call__(self, x, context):
        cfg = self.config
        rows, n, dim = x.shape
        heads, dv = cfg.num_heads, cfg.v_dim
        channels = [c for c in CHANNELS if c in cfg.channels]
        semantic = "semantic" in channels
        qk_width = heads * cfg.qk_dim if semantic else 0
        u_width, v_width = len(channels) * heads * dv, heads * dv

        with jax.named_scope("uvqk"):
            width = u_width + v_width + 2 * qk_width
            init = nn.initializers.normal(0.02)
            uvqk = Dense(width, init, dtype=cfg.dtype, name="uvqk")(rms_norm(x))
            splits = (u_width, u_width + v_width, u_width + v_width + qk_width)
            # SiLU after the split: the other order costs 2.5 times as much on a CPU (backward).
            u, v, q, k = (nn.silu(part) for part in jnp.split(uvqk, splits, axis=-1))
            v = v.reshape(rows, n, heads, dv)
            q = q.reshape(rows, n, heads, cfg.qk_dim) if semantic else None
            k = k.reshape(rows, n, heads, cfg.qk_dim) if semantic else None

        with jax.named_scope("attention"):
            position_weights, time_weights = RelativeBias(
                cfg, "position" in channels, "time" in channels, name="bias"
            )(n)
            out = silu_attention(
                q,
                k,
                v,
                segment_ids=context["segment_ids"],
                position_weights=position_weights,
                time_weights=time_weights,
                timestamps=context["timestamps"],
                query_times=query_times(context, cfg.time_difference),
                scale=1.0 / cfg.num_slots,
                bias="separate",
                packed=self.packed,
                implementation=cfg.implementation,
            )
            factor = semantic_factor(context["segment_ids"], cfg.semantic_divisor, cfg.num_slots)
            if semantic and factor is not None:
                out = out._replace(semantic=out.semantic * factor.astype(v.dtype))
            o = jnp.concatenate([getattr(out, c) for c in channels], axis=-1)
            h = u * rms_norm(o.reshape(rows, n, u_width))

        with jax.named_scope("ffn"):
            h = Dropout(cfg.dropout_rate)(h, self.deterministic)
            bias_init = torch_linear_bias(u_width)
            y = x + Dense(dim, xavier_uniform, bias_init, cfg.dtype, (None, "embed"), name="w0")(h)
            if cfg.single_stage_ffn:
                return y, None
            hidden = round(cfg.ffn_multiple * dim)
            f = Dropout(cfg.dropout_rate)(rms_norm(y), self.deterministic)
            gate = nn.silu(Dense(hidden, dtype=cfg.dtype, name="w1")(f))
            up = Dense(hidden, dtype=cfg.dtype, name="w3")(f)
            down = Dense(dim, dtype=cfg.dtype, axes=(None, "embed"), name="w2")(gate * up)
            return y + down, None


class FuXiAlpha(nn.Module):
    """Items and times to L2-normalised user vectors after each event, (R, N, D)."""

    config: FuXiAlphaConfig
    rows: int  # of the item table

    @nn.compact
    def __call__(self, batch, *, deterministic: bool = True, packed: bool = False):
        return run_blocks(
            FuXiAlphaBlock,
            self.config,
            self.rows,
            batch,
            packed=packed,
            deterministic=deterministic,
        )
