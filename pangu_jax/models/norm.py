"""RMSNorm with a float32 gain, stored as the gain itself.

Not as gain - 1: weight decay reaches the gains of Pangu Ultra (specification 1.7) and must pull
them towards 0, not towards 1.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from pangu_jax.kernels.rms_norm import rms_norm
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.init import constant


class NormScale(nn.Module):
    """The parameter 'scale' (width,) of a norm, for operations that fuse the norm itself."""

    width: int
    gain: float = 1.0

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("scale", constant(self.gain, "norm"), (self.width,))


class RMSNorm(nn.Module):
    """x (..., width) -> scale * x / RMS(x), in float32, returned in the type of x."""

    config: DecoderConfig
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", constant(self.gain, "norm"), (x.shape[-1],))
        cfg = self.config
        return rms_norm(x, scale, eps=cfg.norm_eps, implementation=cfg.norm_implementation)
