"""Grouped-query attention with rotary positions, document resets and an optional cache.

Letters: B rows, T queries, S keys, D hidden width, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax

from pangu_jax.models.cache import write_layer
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.init import weight_std
from pangu_jax.models.norm import RMSNorm
from pangu_jax.models.ops import LOCAL, BlockOps
from pangu_jax.models.projection import Weights, constrain
from pangu_jax.models.rope import apply_rope


class AttentionContext(NamedTuple):
    """What all layers share; made once per call.

    rope: cos and sin, (B, T, H / 2). q_segment_ids, q_positions: int32 (B, T); kv_...: (B, S).
    Segment ids None: one document per row. Positions None: a row's order is its documents' order,
    which lets attention skip the future without looking. cache_start: first slot to write.
    """

    rope: tuple[jax.Array, jax.Array]
    q_segment_ids: jax.Array | None
    kv_segment_ids: jax.Array | None
    q_positions: jax.Array | None
    kv_positions: jax.Array | None
    cache_start: jax.Array | None = None


class Attention(nn.Module):
    """x (B, T, D) -> (B, T, D); with a cache (k, v), each (L, B, S, K, H), also writes it."""

    config: DecoderConfig
    ops: BlockOps = LOCAL

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: AttentionContext,
        layer: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        cfg = self.config
        d, h = cfg.hidden_dim, cfg.head_dim

        def weights(name, heads, axis):
            return Weights(
                (d, heads, h), ("embed", axis, "head_dim"), weight_std(cfg), cfg.dtype,
                bias_rank=2 * cfg.qkv_bias, name=name,
            )()  # fmt: skip

        axes = ("heads", "kv_heads", "kv_heads")
        kernels, biases = zip(
            weights("q", cfg.num_heads, axes[0]),
            weights("k", cfg.num_kv_heads, axes[1]),
            weights("v", cfg.num_kv_heads, axes[2]),
            strict=True,
        )
        q, k, v = (
            constrain(y if bias is None else y + bias, "batch", "sequence", axis, "head_dim")
            for y, bias, axis in zip(
                self.ops.products(("btd,dnh->btnh",) * 3, x, kernels), biases, axes, strict=True
            )
        )
        if cfg.qk_norm:
            q, k = RMSNorm(cfg, name="q_norm")(q), RMSNorm(cfg, name="k_norm")(k)
        with jax.named_scope("rope"):
            q = apply_rope(q, context.rope, layout=cfg.rope_layout)
            k = apply_rope(k, context.rope, layout=cfg.rope_layout)
        if cache is not None:
            all_k, k = write_layer(cache[0], layer, context.cache_start, k)
            all_v, v = write_layer(cache[1], layer, context.cache_start, v)
            cache = all_k, all_v
        out = self.ops.attend(
            q,
            k.astype(q.dtype),
            v.astype(q.dtype),
            q_segment_ids=context.q_segment_ids,
            kv_segment_ids=context.kv_segment_ids,
            q_positions=context.q_positions,
            kv_positions=context.kv_positions,
            scale=h**-0.5,
            implementation=cfg.attention_implementation,
        )
        out = constrain(out, "batch", "sequence", "heads", "head_dim")
        kernel, bias = Weights(
            (cfg.num_heads, h, d), ("heads", "head_dim", "embed"), weight_std(cfg, residual=True),
            cfg.dtype, bias_rank=int(cfg.out_bias), name="o",
        )()  # fmt: skip
        out = self.ops.product_back("btnh,nhd->btd", out, kernel)
        return out if bias is None else out + bias, cache
