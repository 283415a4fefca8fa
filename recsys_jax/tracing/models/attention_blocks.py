"""Attention over a student's past: what SAKT, SAINT, AKT, simpleKT and CL4KT share.

Letters: B students, T steps, H heads, D width. Masks are bool, broadcastable to (B, H, T, T), true
where the query (third axis) may see the key (fourth). A query that may see nothing gets weights of
zero, not an average of what it may not see; so the first answer of a student is predicted from the
question alone. Arithmetic is in the type of the inputs (float32; float64 in tests).

Plain einsum and softmax, not `pangu_jax.kernels.segment_attention`: these models drop attention
weights, exclude the query's own step or reshape the scores, none of which that kernel does.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recsys_jax.sequential.layers import partitioned, torch_linear_bias, xavier_uniform
from recsys_jax.sequential.randomness import Dropout
from recsys_jax.tracing.models.attention_core import attend, decay, distances, masked_softmax

__all__ = ["masked_softmax"]

# PyTorch's default weight of a linear layer: uniform in +-1/sqrt(fan_in).
torch_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def check_width(width: int, num_heads: int, dropout_rate: float) -> None:
    """Raises ValueError where heads do not divide the width, or for a dropout outside [0, 1)."""
    if width < 1 or num_heads < 1 or width % num_heads:
        raise ValueError(f"embedding_dim={width} is not a multiple of num_heads={num_heads}")
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate={dropout_rate} must lie in [0, 1)")


def check_length(steps: int, max_len: int) -> None:
    """Raises ValueError where a batch is longer than the table of positions."""
    if steps > max_len:
        raise ValueError(
            f"The batch has {steps} steps, the model has positions for max_len={max_len}; raise "
            "max_len or cut the sequences"
        )


def seen(mask: jax.Array, *, strict: bool = False, causal: bool = True) -> jax.Array:
    """bool (B, T) of real steps -> (B, 1, T, T): which keys a query sees.

    Real keys up to the query's own step, before it (`strict`), or all of them (not `causal`).
    """
    steps = mask.shape[-1]
    past = np.tri(steps, k=-1 if strict else 0, dtype=bool) if causal else np.True_
    return jnp.broadcast_to(mask[:, None, None, :] & past, (*mask.shape[:1], 1, steps, steps))


def distance_effect(scores: jax.Array, mask: jax.Array, gamma: jax.Array) -> jax.Array:
    """AKT's decay exp(-softplus(gamma_h) * distance) of each score, (B, H, T, T), within [1e-5, 1].

    No gradient through the distance (`attention_core.distances`, AKT, spec 3.1). gamma: (H,).
    """
    return decay(distances(scores, mask), gamma[:, None, None])


def sinusoid(steps: int, dim: int) -> np.ndarray:
    """float32 (T, D): sines at even and cosines at odd columns, wavelengths up to 10000 * 2 pi."""
    angles = np.arange(steps)[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
    table = np.empty((steps, dim), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : dim // 2]
    return table


class Linear(nn.Module):
    """x W + b over the last axis, W (in, features) with logical axes; PyTorch's initial values."""

    features: int
    kernel_init: nn.initializers.Initializer = torch_linear
    bias_init: nn.initializers.Initializer | None = None  # None: uniform in +-1/sqrt(fan_in)
    axes: tuple[str | None, str | None] = ("embed", None)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias_init = self.bias_init or torch_linear_bias(x.shape[-1])
        return nn.Dense(
            self.features,
            kernel_init=partitioned(self.kernel_init, *self.axes),
            bias_init=partitioned(bias_init, self.axes[1]),
            name="dense",
        )(x)


def layer_norm(name: str) -> nn.LayerNorm:
    """LayerNorm with gain and bias and PyTorch's epsilon."""
    return nn.LayerNorm(epsilon=1e-5, name=name)


class MultiHeadAttention(nn.Module):
    """Projected attention of (B, T, D) queries over (B, T, D) keys and values.

    shared_key_query: one projection for both (AKT's K = Q). monotonic: scores decay with AKT's
    distance. causal: promises that no query sees a key after its own step, which then costs
    nothing. Weights xavier uniform, output PyTorch's default, biases zero.
    """

    num_heads: int
    dropout_rate: float
    shared_key_query: bool = False
    monotonic: bool = False
    causal: bool = False

    @nn.compact
    def __call__(self, query, key, value, mask, *, deterministic: bool) -> jax.Array:
        rows, steps, dim = query.shape
        heads = self.num_heads

        def projection(name):
            return Linear(dim, xavier_uniform, nn.initializers.zeros, name=name)

        def split(x):
            return x.reshape(rows, steps, heads, dim // heads)

        key_projection = projection("key")
        k = split(key_projection(key))
        if self.shared_key_query:
            q = k if query is key else split(key_projection(query))
        else:
            q = split(projection("query")(query))
        v = split(projection("value")(value))
        gamma = None
        if self.monotonic:
            # Xavier uniform of an (H, 1, 1) tensor, as released.
            bound = (6.0 / (1 + heads)) ** 0.5
            gamma = self.param(
                "gamma",
                lambda rng: jax.random.uniform(rng, (heads,), minval=-bound, maxval=bound),
            )
        drops = self.dropout_rate > 0 and not deterministic
        with jax.named_scope("attention"):
            out = attend(
                q,
                k,
                v,
                mask,
                causal=self.causal,
                gamma=gamma,
                rng=self.make_rng("dropout") if drops else None,
                dropout_rate=self.dropout_rate,
            ).reshape(rows, steps, dim)
        return Linear(dim, bias_init=nn.initializers.zeros, name="out")(out)


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear back to the width of the input."""

    hidden: int
    dropout_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        hidden = nn.relu(Linear(self.hidden, axes=("embed", "mlp"), name="in")(x))
        hidden = Dropout(self.dropout_rate)(hidden, deterministic)
        return Linear(x.shape[-1], axes=("mlp", "embed"), name="out")(hidden)


class PostNormBlock(nn.Module):
    """x = LN(query + attention); then, with `feed_forward`, LN(x + FFN(x)). Dropout on branches."""

    num_heads: int
    ffn_dim: int
    dropout_rate: float
    shared_key_query: bool = False
    monotonic: bool = False
    causal: bool = False

    @nn.compact
    def __call__(
        self, query, key, value, mask, *, deterministic: bool, feed_forward: bool = True
    ) -> jax.Array:
        attended = MultiHeadAttention(
            self.num_heads,
            self.dropout_rate,
            self.shared_key_query,
            self.monotonic,
            self.causal,
            name="attention",
        )(query, key, value, mask, deterministic=deterministic)
        x = layer_norm("attention_norm")(
            query + Dropout(self.dropout_rate)(attended, deterministic)
        )
        if not feed_forward:
            return x
        with jax.named_scope("ffn"):
            update = FeedForward(self.ffn_dim, self.dropout_rate, name="ffn")(
                x, deterministic=deterministic
            )
            return layer_norm("ffn_norm")(x + Dropout(self.dropout_rate)(update, deterministic))


class Head(nn.Module):
    """Widths of hidden layers with an activation and dropout after each, then one logit (B, T)."""

    widths: tuple[int, ...]
    dropout_rate: float
    activation: str = "relu"  # relu | gelu (exact)

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        for i, width in enumerate(self.widths):
            x = Linear(width, axes=("embed", "mlp"), name=f"hidden_{i}")(x)
            x = nn.relu(x) if self.activation == "relu" else nn.gelu(x, approximate=False)
            x = Dropout(self.dropout_rate)(x, deterministic)
        x = Linear(1, name="logit")(x)[..., 0]
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
