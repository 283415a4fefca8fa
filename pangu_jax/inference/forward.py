"""The decoder over a paged cache: one pure function for prefill, decoding and scoring.

Blocks are those of `pangu_jax.models`; only the way they reach keys and values is this module's.

Letters: B rows, C new positions per row, M pages of a row, P pages of the pool, K key-value heads,
H head width, D hidden width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pangu_jax.inference.weights import look_up
from pangu_jax.kernels.decode_attention import decode_attention, write_tokens
from pangu_jax.kernels.rms_norm import rms_norm
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.decoder import Block
from pangu_jax.models.ops import BlockOps
from pangu_jax.models.quantized import Int8Kernel, int8_product, rows_product
from pangu_jax.models.rope import rope_tables

Pages = tuple[tuple[jax.Array, jax.Array], ...]  # per layer: keys and values, each (P, K, page, H)


class Chunk(NamedTuple):
    """New tokens of each row and where they belong.

    tokens: int32 (B, C), padded on the right. start: int32 (B,), positions in the cache already.
    count: int32 (B,), valid tokens; 0 for an idle row, which writes nothing.
    block_tables: int32 (B, M), pages of each row in order.
    """

    tokens: jax.Array
    start: jax.Array
    count: jax.Array
    block_tables: jax.Array


class Forwarded(NamedTuple):
    """hidden: states after the final norm (B, C, D). pages: with the new keys and values.

    streams: float32 (layers + 2, B, D) at the last valid token of each row: the embedding, the
    residual stream after each block, and the last of them after the final norm. None where they
    were not asked for; of an idle row they mean nothing.
    """

    hidden: jax.Array
    pages: Pages
    streams: jax.Array | None


class _PagedContext(NamedTuple):
    rope: tuple[jax.Array, jax.Array]
    q_segment_ids: jax.Array | None
    positions: jax.Array
    valid: jax.Array
    block_tables: jax.Array
    lengths: jax.Array


@dataclasses.dataclass(frozen=True)
class PagedOps(BlockOps):
    """Block operations whose cache is the pages of one layer."""

    implementation: str = "auto"

    def attend_cached(self, q, k, v, context, layer, cache, *, scale, **_):
        """Writes k and v into their pages, then attends to the pages of each row."""
        pages = tuple(
            write_tokens(old, new, context.block_tables, context.positions, context.valid)
            for old, new in zip(cache, (k, v), strict=True)
        )
        out = decode_attention(
            q, *pages, context.block_tables, context.lengths, scale=scale,
            implementation=self.implementation,
        )  # fmt: skip
        return out.astype(q.dtype), pages


def forward(
    config: DecoderConfig, weights: dict[str, Any], pages: Pages, chunk: Chunk,
    lora: tuple[Any, ...] | None = None, *, streams: bool = False,
) -> Forwarded:  # fmt: skip
    """New tokens through all blocks.

    Args:
      weights: of `prepare_weights`.
      lora: per layer, the adapters' variables for these rows; None for the base model.
      streams: whether to return them.
    """
    # Padding goes to the left: a query there sees keys of the row at most, never a slot that nobody
    # has written, and the newest keys end where decode_attention expects them.
    width = chunk.tokens.shape[1]
    order = jnp.arange(width, dtype=jnp.int32)[None]
    padding = width - chunk.count[:, None]
    lengths = chunk.start + chunk.count
    positions = lengths[:, None] - width + order
    tokens = _rolled(chunk.tokens, order - padding)
    context = _PagedContext(
        rope_tables(config, positions), None, positions, order >= padding, chunk.block_tables,
        lengths,
    )  # fmt: skip
    block = Block(config, ops=PagedOps(implementation=config.attention_implementation))
    x = look_up(weights["embedding"], tokens, config.dtype)
    new, last = [], [x[:, -1]] if streams else []
    for layer, params in enumerate(weights["layers"]):
        variables = {"params": params} | ({} if lora is None else {"lora": lora[layer]})
        (x, kv), _ = block.apply(variables, (x, pages[layer]), layer, context)
        new.append(kv)
        if streams:
            last.append(x[:, -1])
    hidden = final_norm(config, weights, _rolled(x, order + padding))
    found = None
    if streams:  # all of them: which of them somebody wants must not make another program
        last.append(final_norm(config, weights, x[:, -1]))
        found = jnp.stack(last).astype(jnp.float32)
    return Forwarded(hidden, tuple(new), found)


def _rolled(x: jax.Array, source: jax.Array) -> jax.Array:
    """x (B, C, ...) with place c taken from source (B, C), counted round the row."""
    if x.shape[1] == 1:
        return x
    source = (source % x.shape[1]).reshape(*source.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, source, axis=1)


def final_norm(config: DecoderConfig, weights: dict[str, Any], x: jax.Array) -> jax.Array:
    """The last norm of the residual stream (..., D)."""
    return rms_norm(
        x, weights["final_norm"]["scale"], eps=config.norm_eps,
        implementation=config.norm_implementation,
    )  # fmt: skip


def logits_of(weights: dict[str, Any], hidden: jax.Array) -> jax.Array:
    """float32 logits (..., V) of hidden states (..., D) after the final norm."""
    table = weights["embedding"] if weights["head"] is None else weights["head"]
    with jax.named_scope("head"):
        if isinstance(table, Int8Kernel):
            return int8_product(hidden.astype(jnp.float32), table)
        rows = hidden.reshape(-1, hidden.shape[-1]).astype(table.dtype)
        y = rows_product(rows, table, (((1,), (1,)), ((), ())))
        return y.reshape(*hidden.shape[:-1], -1)


def create_pages(
    config: DecoderConfig, num_pages: int, page_size: int, dtype: str | None = None
) -> Pages:
    """Empty pools of all layers. Page 0 is nobody's: idle rows point to it."""
    shape = (num_pages, config.num_kv_heads, page_size, config.head_dim)
    dtype = dtype or config.dtype
    return tuple(
        (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)
    )
