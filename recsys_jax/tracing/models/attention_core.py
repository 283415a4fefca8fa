"""Attention of the tracing models, head by head and in blocks of queries.

Scores of all heads (B, H, T, T) are larger than a processor's caches at usual sizes (82 MB at 64
students, 8 heads, 200 steps), and AKT makes a dozen arrays of that size in each of its 12 layers.
On a CPU the heads therefore take turns and the backward pass computes the scores of a head again,
so that what passes between two operations stays in a cache. Elsewhere all heads run at once. In a
causal block the keys after its last query are not computed at all.

Letters: B students, T query and key steps, H heads, d width of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from recsys_jax.sequential.randomness import dropout

MASKED = -1e30
_BLOCK = 50  # queries; fewer skip more of the causal half but make smaller products


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the keys that are seen; zeros, with zero gradient, where none is."""
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1), 0)


def distances(scores: jax.Array, mask: jax.Array, first: int = 0) -> jax.Array:
    """AKT's distance of each key, like scores (..., queries, keys), without a gradient.

    distance(t, s) = sqrt(|t - s| * weight that plain attention at t puts on keys after s). first:
    the step of the first query.
    """
    queries, keys = scores.shape[-2:]
    weights = masked_softmax(jax.lax.stop_gradient(scores), mask)
    # Weight after each key as a product with a triangle of ones: several times faster than a
    # cumulative sum on a CPU, and never negative.
    after = np.tri(keys, k=-1, dtype=np.float32)
    later = jnp.einsum("...ts,sr->...tr", weights, after, precision=jax.lax.Precision.HIGHEST)
    apart = np.abs(first + np.arange(queries)[:, None] - np.arange(keys)).astype(np.float32)
    return jax.lax.stop_gradient(jnp.sqrt(later * apart))


def decay(distance: jax.Array, gamma: jax.Array) -> jax.Array:
    """exp(-softplus(gamma) * distance), within [1e-5, 1]; gamma broadcasts over distance."""
    return jnp.maximum(jnp.exp(-jax.nn.softplus(gamma) * distance), 1e-5)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    causal: bool = False,
    gamma: jax.Array | None = None,
    rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Scaled dot-product attention (B, T, H, d) of queries over keys and values (B, T, H, d).

    mask: bool (B, 1, T, T), which keys a query sees. causal: promises that it sees none after its
    own step. gamma: (H,), AKT's decay of scores by distance. rng: key of dropout on weights.
    """
    steps, heads = query.shape[1:3]
    per_head = [jnp.moveaxis(x, 2, 0) for x in (query, key, value)]
    keys = jax.random.split(rng, heads) if rng is not None and dropout_rate else None

    def head(x):
        (q, k, v), gamma, rng = x
        outputs = []
        for number, start in enumerate(range(0, steps, _BLOCK)):
            stop = min(start + _BLOCK, steps)
            end = stop if causal else steps
            seen = mask[:, 0, start:stop, :end]
            scores = jnp.einsum("btd,bsd->bts", q[:, start:stop], k[:, :end]) * q.shape[-1] ** -0.5
            if gamma is not None:
                scores = scores * decay(distances(scores, seen, start), gamma)
            weights = masked_softmax(scores, seen)
            if rng is not None:
                weights = dropout(jax.random.fold_in(rng, number), weights, dropout_rate)
            outputs.append(jnp.einsum("bts,bsd->btd", weights, v[:, :end]))
        return jnp.concatenate(outputs, 1)

    inputs = (per_head, gamma, keys)
    if jax.default_backend() == "cpu":
        out = jax.lax.map(jax.checkpoint(head), inputs)
    else:
        out = jax.vmap(head)(inputs)
    return jnp.moveaxis(out, 0, 2)
