"""Initial standard deviations of weights and initial gains of post-norms.

Plain (untruncated) normal draws with a given deviation: flax's fan-in initialisers would give the
down projection another deviation, and truncation changes it everywhere.

Source: Pangu Ultra (arXiv 2504.07866) sections 2.1 and 2.2; specification 1.2 and 1.4.
"""

from __future__ import annotations

import math

import flax.linen as nn

from pangu_jax.models.config import DecoderConfig


def weight_std(config: DecoderConfig, *, residual: bool = False) -> float:
    """Standard deviation of a weight matrix; `residual` marks the projections o and down.

    tiny: sqrt(1 / (2 D L)) for every weight. traditional: sqrt(2 / (5 D)), and sqrt(2 / (5 D L))
    for residual ones. D is the hidden width also where the fan-in is the MLP's width, and L the
    total depth, whatever part of the layers a pipeline stage holds.
    """
    d, layers = config.hidden_dim, config.num_layers
    if config.init == "tiny":
        return math.sqrt(1 / (2 * d * layers))
    return math.sqrt(2 / (5 * d * (layers if residual else 1)))


def post_norm_gain(config: DecoderConfig, branch: str) -> float:
    """Initial gain of the norm after `branch`, 'attn' or 'mlp'.

    dssn: c / sqrt(L), L the total depth. sandwich: 1 or c, by `config.sandwich_gamma`.
    """
    c = {"attn": config.c_attn, "mlp": config.c_mlp}[branch]
    if config.norm_scheme == "dssn":
        return c / math.sqrt(config.num_layers)
    return c if config.sandwich_gamma == "c" else 1.0


def normal(std: float, *axes: str | None):
    """Normal initialiser whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


def constant(value: float, *axes: str | None):
    """Constant initialiser whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(nn.initializers.constant(value), axes)
