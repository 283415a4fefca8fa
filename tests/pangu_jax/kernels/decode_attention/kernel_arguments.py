"""Arguments for the kernels of decode attention, spoilt wherever nobody may look."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def arguments(lengths, queries, heads, kv_heads, width, page, pages, window=None):
    """NaN wherever no query looks; tables name page 0 past a row's length."""
    rng = np.random.default_rng(0)
    pool = len(lengths) * pages + 1
    tables = 1 + rng.permutation(pool - 1).reshape(len(lengths), pages).astype(np.int32)
    seen = np.zeros((pool, page), bool)
    for b, length in enumerate(lengths):
        oldest = 0 if window is None else max(0, length - queries - window + 1)
        for p in range(oldest, length):
            seen[tables[b, p // page], p % page] = True
        tables[b, -(-length // page) :] = 0
    args = {"q": rng.normal(size=(len(lengths), queries, heads, width))}
    for name in ("k_pages", "v_pages"):
        x = rng.normal(size=(pool, kv_heads, page, width))
        args[name] = np.where(seen[:, None, :, None], x, np.nan)
    return args | {"block_tables": tables, "lengths": np.array(lengths, np.int32)}


def run(function, args, dtype, **static):
    args = {n: jnp.asarray(x, None if x.dtype == np.int32 else dtype) for n, x in args.items()}
    call = jax.jit(functools.partial(function, scale=0.3, **static))
    return np.asarray(call(**args), np.float64)
