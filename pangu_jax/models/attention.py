"""Grouped-query attention with rotary positions, document resets and an optional cache.

Letters: B rows, T queries, S keys, D hidden width, N query heads, K key-value heads, H head width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.context import AttentionContext, visibility
from pangu_jax.models.init import weight_std
from pangu_jax.models.norm import RMSNorm
from pangu_jax.models.ops import LOCAL, BlockOps
from pangu_jax.models.projection import Weights, constrain
from pangu_jax.models.remat import WEIGHT_PRODUCTS
from pangu_jax.models.rope import apply_rope


class Attention(nn.Module):
    """x (B, T, D) -> (B, T, D); with a cache, also writes it, in the form that `ops` keeps."""

    config: DecoderConfig
    ops: BlockOps = LOCAL

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: AttentionContext,
        layer: jax.Array,
        cache: Any = None,
    ) -> tuple[jax.Array, Any]:
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
        products = self.ops.products(("btd,dnh->btnh",) * 3, x, kernels)
        products = checkpoint_name(products, WEIGHT_PRODUCTS)
        q, k, v = (
            constrain(y if bias is None else y + bias, "batch", "sequence", axis, "head_dim")
            for y, bias, axis in zip(products, biases, axes, strict=True)
        )
        if cfg.qk_norm:
            q, k = RMSNorm(cfg, name="q_norm")(q), RMSNorm(cfg, name="k_norm")(k)
        with jax.named_scope("rope"):
            q = apply_rope(q, context.rope, layout=cfg.rope_layout)
            k = apply_rope(k, context.rope, layout=cfg.rope_layout)
        arguments = {"scale": h**-0.5, "implementation": cfg.attention_implementation}
        if cache is None:
            out = self.ops.attend(q, k, v, **visibility(context), **arguments)
        else:
            out, cache = self.ops.attend_cached(q, k, v, context, layer, cache, **arguments)
        out = constrain(out, "batch", "sequence", "heads", "head_dim")
        kernel, bias = Weights(
            (cfg.num_heads, h, d), ("heads", "head_dim", "embed"), weight_std(cfg, residual=True),
            cfg.dtype, bias_rank=int(cfg.out_bias), name="o",
        )()  # fmt: skip
        out = self.ops.product_back("btnh,nhd->btd", out, kernel)
        out = checkpoint_name(out, WEIGHT_PRODUCTS)
        return out if bias is None else out + bias, cache
