"""HSTU (arXiv 2402.17152) as released and as used for the FuXi-alpha comparison (spec 7)."""

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
    layer_norm,
    run_blocks,
    torch_linear_bias,
    xavier_uniform,
)
from recsys_jax.sequential.randomness import Dropout
from recsys_jax.sequential.relative_bias import RelativeBias, query_times, semantic_factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class HSTUConfig(BackboneConfig):
    """HSTU. ML-1M base as released: D 50, 2 layers, 1 head of 50."""

    num_heads: int = 1
    qk_dim: int = 50
    v_dim: int = 50
    time_difference: str = "request"  # request (code: ts[i+1] - ts[j]) | items (t_i - t_j)
    semantic_divisor: str = "slots"  # slots (code: constant n) | length

    def __post_init__(self):
        super().__post_init__()
        check_choice("time_difference", self.time_difference, ("request", "items"))
        check_choice("semantic_divisor", self.semantic_divisor, ("slots", "length"))


class HSTUBlock(nn.Module):
    """y = x + (u * LN(SiLU(q k^T + position + time)/n v)) W_o + b_o; no feed-forward network."""

    config: HSTUConfig
    packed: bool
    deterministic: bool

    @nn.compact
    def __call__(self, x, context):
        cfg = self.config
        rows, n, dim = x.shape
        heads, v_width = cfg.num_heads, cfg.num_heads * cfg.v_dim
        qk_width = heads * cfg.qk_dim
        with jax.named_scope("uvqk"):
            init = nn.initializers.normal(0.02)
            width = 2 * v_width + 2 * qk_width
            uvqk = Dense(width, init, dtype=cfg.dtype, name="uvqk")(layer_norm(x))
            splits = (v_width, 2 * v_width, 2 * v_width + qk_width)
            u, v, q, k = (nn.silu(part) for part in jnp.split(uvqk, splits, axis=-1))
        with jax.named_scope("attention"):
            position_weights, time_weights = RelativeBias(cfg, name="bias")(n)
            attended = silu_attention(
                q.reshape(rows, n, heads, cfg.qk_dim),
                k.reshape(rows, n, heads, cfg.qk_dim),
                v.reshape(rows, n, heads, cfg.v_dim),
                segment_ids=context["segment_ids"],
                position_weights=position_weights,
                time_weights=time_weights,
                timestamps=context["timestamps"],
                query_times=query_times(context, cfg.time_difference),
                scale=1.0 / cfg.num_slots,
                bias="added",
                packed=self.packed,
                implementation=cfg.implementation,
            ).semantic
            factor = semantic_factor(context["segment_ids"], cfg.semantic_divisor, cfg.num_slots)
            if factor is not None:
                attended = attended * factor.astype(attended.dtype)
            h = u * layer_norm(attended.reshape(rows, n, v_width))
        h = Dropout(cfg.dropout_rate)(h, self.deterministic)
        bias_init = torch_linear_bias(v_width)
        out = Dense(dim, xavier_uniform, bias_init, cfg.dtype, (None, "embed"), name="out")(h)
        return x + out, None


class HSTU(nn.Module):
    """Items and times to L2-normalised user vectors after each event, (R, N, D)."""

    config: HSTUConfig
    rows: int

    @nn.compact
    def __call__(self, batch, *, deterministic: bool = True, packed: bool = False):
        return run_blocks(
            HSTUBlock, self.config, self.rows, batch, packed=packed, deterministic=deterministic
        )
