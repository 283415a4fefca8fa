"""SwiGLU: down(silu(gate(x)) * up(x))."""

from __future__ import annotations

import flax.linen as nn
import jax

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.init import weight_std
from pangu_jax.models.projection import Projection, constrain


class SwiGLU(nn.Module):
    """x (B, T, D) -> (B, T, D), without biases. Source: Shazeer (arXiv 2002.05202), Eq. 6."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        d, f = cfg.hidden_dim, cfg.mlp_dim

        def wide(name):
            layer = Projection(
                "btd,df->btf", (d, f), ("embed", "mlp"), weight_std(cfg), cfg.dtype, name=name
            )
            return constrain(layer(x), "batch", "sequence", "mlp")

        hidden = nn.silu(wide("gate")) * wide("up")
        down = Projection(
            "btf,fd->btd", (f, d), ("mlp", "embed"), weight_std(cfg, residual=True), cfg.dtype,
            name="down",
        )  # fmt: skip
        return down(hidden)
