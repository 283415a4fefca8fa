"""Toeplitz maps, and the position channel as plain matrix products over the whole batch.

Letters: B batch, N positions, H heads, D width of a head, P entries of the table (P >= N).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MIN_BLOCK = 64
MAX_BLOCKS = 4


def toeplitz_rows(weights: jax.Array, start: int | jax.Array, rows: int, columns: int) -> jax.Array:
    """Rows start.. of the lower-triangular matrix with entry (i, j) = weights[i - j].

    Built from one slice, tiles and reshapes: reverse-mode differentiation then turns into sums
    along diagonals, without gather or scatter. Source: specification section 5.4.

    Args:
      weights: [P], P >= start + rows.
      start: first row; may be traced.
      rows: number of rows.
      columns: number of columns, from column 0.

    Returns:
      [rows, columns] of the type of `weights`; zero where j > i.
    """
    padded = jnp.concatenate([weights[::-1], jnp.zeros((columns,), weights.dtype)])
    width = columns + rows - 1
    first = weights.shape[0] - rows - start
    line = jax.lax.dynamic_slice_in_dim(padded, first, width)
    line = jnp.pad(line, (0, 1))
    return jnp.tile(line, rows)[: rows * width].reshape(rows, width)[:, rows - 1 :]


def diagonal_sums(matrix: jax.Array) -> jax.Array:
    """Sums along the diagonals of a [rows, columns] matrix.

    Returns:
      [rows + columns - 1]; entry z sums over (r, c) with r - c = z - (columns - 1). Transpose of
      `toeplitz_rows`: there the distance is start + r - c.
    """
    rows, columns = matrix.shape
    wide = jnp.concatenate([matrix[:, ::-1], jnp.zeros((rows, rows), matrix.dtype)], axis=1)
    width = columns + rows - 1
    return wide.reshape(-1)[: rows * width].reshape(rows, width).sum(0)


def extend(weights: jax.Array, n: int) -> jax.Array:
    """At least n entries: distances past the end of the table use its last entry."""
    missing = n - weights.shape[0]
    return weights if missing <= 0 else jnp.pad(weights, (0, missing), mode="edge")


def position_channel(v: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_{j <= i} weights[i - j] v[:, j] for rows that hold one left-aligned segment.

    At most four row blocks: they skip 3/8 of the dense product's work above the diagonal and
    leave each product large enough to run at full speed.

    Args:
      v: [B, N, H, D], zero at padding.
      weights: [P], P >= N.

    Returns:
      [B, N, H, D] of v's type, accumulated in at least float32; padded rows hold anything.
    """
    n = v.shape[1]
    acc = jnp.promote_types(v.dtype, jnp.float32)
    block = max(MIN_BLOCK, -(-n // MAX_BLOCKS))
    out = []
    for start in range(0, n, block):
        stop = min(start + block, n)
        rows = toeplitz_rows(weights, start, stop - start, stop).astype(v.dtype)
        product = jnp.einsum("ij,bjhd->bihd", rows, v[:, :stop], preferred_element_type=acc)
        out.append(product.astype(v.dtype))
    return jnp.concatenate(out, axis=1)
