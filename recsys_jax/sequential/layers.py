"""Layers and initialisers shared by the sequential recommenders.

Shapes: R rows, N columns, D embedding width, H heads. `segment_ids` (R, N) is 0 on padding; two
columns belong to the same user when their non-zero segment ids agree (packed rows hold several).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pangu_jax.models.remat import check_policy, remat_block
from recsys_jax.sequential.randomness import Dropout, dropout

# torch.nn.init.xavier_normal_ / xavier_uniform_; flax's `glorot_normal` would be truncated.
xavier_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
xavier_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What every sequence model has: widths, depth, slots and numerics.

    `num_slots` = max_len + extra_slots is the constant n of the released FuXi / HSTU code
    (200 history + 10 output + 1 = 211): it sizes the position tables and divides the semantic
    attention, whatever the padded length of a batch is (spec 1.2).
    """

    embedding_dim: int = 50
    num_layers: int = 2
    dropout_rate: float = 0.2
    max_len: int = 200
    extra_slots: int = 11
    dtype: str = "float32"  # of activations and matrix products; parameters stay float32
    remat: str = "none"  # none | nothing | dots: what each block keeps for the backward pass
    scan_unroll: bool = True  # one stacked parameter tree either way; False compiles one block
    implementation: str = "auto"  # of kernels

    @property
    def num_slots(self) -> int:
        return self.max_len + self.extra_slots

    def __post_init__(self):
        check_policy(self.remat)
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate={self.dropout_rate} must lie in [0, 1)")


def rms_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """RMSNorm over the last axis without a gain, in float32 (released FuXi-alpha)."""
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)).astype(x.dtype)


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """LayerNorm over the last axis without gain or bias, in float32 (released HSTU, SASRec)."""
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x32 - jnp.mean(x32, -1, keepdims=True)
    var = jnp.mean(centred * centred, -1, keepdims=True)
    return (centred * jax.lax.rsqrt(var + eps)).astype(x.dtype)


def l2_normalize(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """x / max(||x||_2, eps) over the last axis; the gradient at 0 is 0, not NaN."""
    square = jnp.sum(x * x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))


def check_choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError naming the field when `value` is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{field}={value!r} is not one of {', '.join(allowed)}")


def partitioned(init, *axes: str | None):
    """An initialiser whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(init, axes)


class ItemEmbedding(nn.Module):
    """Item table (rows, D), row 0 = padding; rows carry the logical axis 'items'.

    std 0.02 truncated at two deviations, as released. `rows` is num_items + 1, rounded up where
    the table is sharded by rows.
    """

    rows: int
    dim: int

    @nn.compact
    def __call__(self, items: jax.Array) -> jax.Array:
        table = self.param(
            "embedding",
            partitioned(nn.initializers.truncated_normal(0.02), "items", "embed"),
            (self.rows, self.dim),
        )
        return jnp.take(table, items, axis=0)


class InputLayer(nn.Module):
    """Dropout(E[item] * sqrt(D) + position) * valid  (spec 1.2, `input_features_preprocessors`)."""

    config: BackboneConfig
    rows: int
    position_init: Any = xavier_normal  # None: no learned positions (RoPE, recurrent models)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], deterministic: bool) -> jax.Array:
        cfg = self.config
        x = ItemEmbedding(self.rows, cfg.embedding_dim, name="items")(batch["items"])
        x = x * cfg.embedding_dim**0.5
        if self.position_init is not None:
            table = self.param(
                "positions",
                partitioned(self.position_init, None, "embed"),
                (cfg.num_slots, cfg.embedding_dim),
            )
            x = x + jnp.take(table, batch["positions"], axis=0)
        x = Dropout(cfg.dropout_rate)(x.astype(cfg.dtype), deterministic)
        return x * (batch["segment_ids"] > 0)[..., None].astype(x.dtype)


def item_table(params: dict[str, Any]) -> jax.Array:
    """The raw item table (rows, D) inside a sequence model's parameters."""
    return params["input"]["items"]["embedding"]


def stack_blocks(block: type[nn.Module], config: BackboneConfig, *args, **kwargs) -> nn.Module:
    """`num_layers` copies of `block` as one scanned module named 'blocks'.

    The block is called as (x, context) -> (x, None); parameters are stacked on a leading 'layers'
    axis; `context` (a dict of arrays) is shared by all layers.
    """
    return nn.scan(
        remat_block(block, config.remat),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,),
        length=config.num_layers,
        unroll=config.num_layers if config.scan_unroll else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, *args, name="blocks", **kwargs)


def run_blocks(
    block: type[nn.Module],
    config: BackboneConfig,
    rows: int,
    batch: dict[str, jax.Array],
    *,
    packed: bool,
    deterministic: bool,
    position_init: Any = xavier_normal,
) -> jax.Array:
    """Input layer, the stack of blocks and the output norm: user vectors (R, N, D) float32.

    Row (r, i) is the L2-normalised user vector after event i; zero on padding.
    """
    x = InputLayer(config, rows, position_init, name="input")(batch, deterministic)
    context = {key: batch[key] for key in ("segment_ids", "positions", "timestamps", "query_times")}
    x, _ = stack_blocks(block, config, packed, deterministic)(x, context)
    valid = (batch["segment_ids"] > 0)[..., None]
    return l2_normalize(jnp.where(valid, x, 0).astype(jnp.promote_types(x.dtype, jnp.float32)))


class Dense(nn.Module):
    """x @ W (+ b) with logical axes (embed, features); W from `kernel_init`, b from `bias_init`."""

    features: int
    kernel_init: Any = xavier_uniform
    bias_init: Any = None  # None: no bias
    dtype: str = "float32"
    axes: tuple[str | None, str | None] = ("embed", None)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel", partitioned(self.kernel_init, *self.axes), (x.shape[-1], self.features)
        )
        y = x @ kernel.astype(self.dtype)
        if self.bias_init is not None:
            bias = self.param("bias", partitioned(self.bias_init, self.axes[1]), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


def torch_linear_bias(fan_in: int):
    """PyTorch's default bias of a linear layer: uniform in +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def causal_segment_mask(segment_ids: jax.Array) -> jax.Array:
    """(R, N) -> bool (R, N, N): j may be seen by i when j <= i and both share a real segment."""
    n = segment_ids.shape[-1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return same & (segment_ids > 0)[:, :, None] & jnp.tril(jnp.ones((n, n), bool))


def softmax_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
) -> jax.Array:
    """Causal softmax(q k^T / sqrt(d)) v within segments; q, k, v and result (R, N, H, d).

    Own code because `jax.nn.dot_product_attention` has no dropout on the weights (SASRec has).
    Rows of padding attend to themselves, so that their softmax is defined.
    """
    n = segment_ids.shape[-1]
    mask = causal_segment_mask(segment_ids) | jnp.eye(n, dtype=bool)
    logits = jnp.einsum("bihd,bjhd->bhij", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -1e30), axis=-1)
    if dropout_rate > 0.0 and dropout_rng is not None:
        weights = dropout(dropout_rng, weights, dropout_rate)
    return jnp.einsum("bhij,bjhd->bihd", weights.astype(v.dtype), v)
