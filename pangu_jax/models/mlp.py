"""SwiGLU: down(silu(gate(x)) * up(x))."""

from __future__ import annotations

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.init import weight_std
from pangu_jax.models.ops import LOCAL, BlockOps
from pangu_jax.models.projection import Weights, constrain
from pangu_jax.models.remat import WEIGHT_PRODUCTS


class SwiGLU(nn.Module):
    """x (B, T, D) -> (B, T, D), without biases. Source: Shazeer (arXiv 2002.05202), Eq. 6."""

    config: DecoderConfig
    ops: BlockOps = LOCAL

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        d, f = cfg.hidden_dim, cfg.mlp_dim

        def wide(name):
            kernel, _ = Weights((d, f), ("embed", "mlp"), weight_std(cfg), cfg.dtype, name=name)()
            return kernel

        products = self.ops.products(("btd,df->btf",) * 2, x, (wide("gate"), wide("up")))
        gate, up = checkpoint_name(products, WEIGHT_PRODUCTS)
        axes = ("batch", "sequence", "mlp")
        hidden = nn.silu(constrain(gate, *axes)) * constrain(up, *axes)
        down, _ = Weights(
            (f, d), ("mlp", "embed"), weight_std(cfg, residual=True), cfg.dtype, name="down"
        )()
        out = self.ops.product_back("btf,fd->btd", hidden, down)
        return checkpoint_name(out, WEIGHT_PRODUCTS)
