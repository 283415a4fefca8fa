"""Pages of keys or values: writing new tokens, and the contiguous rows that pages stand for.

A row's token at position p lies in slot p % page of its (p // page)-th page.

Letters: B rows, C new positions of a row, P pages of the pool, M pages of a row, K key-value heads,
H head width, S = M * page slots of a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def write_tokens(
    pages: jax.Array,
    new: jax.Array,
    block_tables: jax.Array,
    positions: jax.Array,
    valid: jax.Array | None = None,
) -> jax.Array:
    """The pool with new tokens in it; in place inside a jit that owns `pages` (donated).

    Not in place for bfloat16 on CPU, where XLA converts the whole pool and back: use float16 there.

    Args:
      pages: [P, K, page, H].
      new: [B, C, K, H], cast to the type of the pages.
      block_tables: int32 [B, M], pages of each row in order.
      positions: int32 [B, C], place of each token in its row. Two tokens of one call must not
        share a slot.
      valid: bool [B, C], which tokens to write; None for all. Positions outside 0 .. M * page - 1
        are not written either.

    Returns:
      [P, K, page, H].

    Raises:
      ValueError: for shapes or types that do not fit together.
    """
    count, kv_heads, size, width = pages.shape
    rows, chunk = positions.shape
    if new.shape != (rows, chunk, kv_heads, width):
        raise ValueError(
            f"new has shape {new.shape}; {(rows, chunk, kv_heads, width)} is needed to fit "
            f"positions of shape {positions.shape} and pages of shape {pages.shape}."
        )
    if block_tables.ndim != 2 or block_tables.shape[0] != rows:
        raise ValueError(f"block_tables has shape {block_tables.shape}; [{rows}, pages] is needed.")
    for name, x in (("block_tables", block_tables), ("positions", positions)):
        if x.dtype != jnp.int32:
            raise ValueError(f"{name} is {x.dtype}; int32 is needed.")
    inside = (positions >= 0) & (positions < block_tables.shape[1] * size)
    if valid is not None:
        if valid.shape != positions.shape or valid.dtype != jnp.bool_:
            raise ValueError(
                f"valid is {valid.dtype}{list(valid.shape)}; bool{[rows, chunk]} is needed."
            )
        inside &= valid
    place = jnp.where(inside, positions, 0)
    page = jnp.take_along_axis(block_tables, place // size, axis=1)
    # A page behind the last one: such writes are dropped.
    page = jnp.where(inside, page, count)
    return pages.at[page, :, place % size].set(new.astype(pages.dtype), mode="drop")


def gather_pages(pages: jax.Array, block_tables: jax.Array) -> jax.Array:
    """[B, K, S, H]: the rows that int32 block tables [B, M] make of a pool [P, K, page, H]."""
    rows, entries = block_tables.shape
    _, kv_heads, size, width = pages.shape
    gathered = pages.at[block_tables].get(mode="promise_in_bounds")
    return jnp.moveaxis(gathered, 2, 1).reshape(rows, kv_heads, entries * size, width)
