"""Hidden states at the places that have a label, and the log-probabilities of those labels.

Letters: B rows, T positions, P places with a label, C places whose logits exist at one time, D
hidden width, V vocabulary, S sequences of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pangu_jax.models.decoder import logits_of


class Labelled(NamedTuple):
    """hidden: (B, P, D). labels: int32 (B, P), below 0: none. weights: float32 (B, P), those of the
    example where there is a label, else 0. segments: int32 (B, P), from 0 in a row."""

    hidden: jax.Array
    labels: jax.Array
    weights: jax.Array
    segments: jax.Array


def at_labels(hidden: jax.Array, batch: dict[str, jax.Array]) -> Labelled:
    """hidden (B, T, D) at a batch's `loss_positions`, with what the losses need beside it."""
    places = jnp.maximum(batch["loss_positions"], 0)
    there = batch["loss_positions"] >= 0
    labels = jnp.where(there, jnp.take_along_axis(batch["labels"], places, axis=1), -1)
    segments = jnp.maximum(jnp.take_along_axis(batch["segment_ids"], places, axis=1) - 1, 0)
    weights = jnp.take_along_axis(batch["segment_weights"], segments, axis=1)
    return Labelled(
        jnp.take_along_axis(hidden, places[..., None], axis=1),
        labels,
        jnp.where(labels >= 0, weights, 0),
        segments,
    )


def label_log_probs(
    hidden: jax.Array, head: jax.Array, labels: jax.Array, *, chunk: int = 128
) -> tuple[jax.Array, jax.Array]:
    """(log softmax(hidden @ head)[label], whether the label is the most probable token), (B, P).

    Both are 0 where the label is below 0. Logits of `chunk` places of a row exist at one time, in
    the backward pass too, which forms them anew. float32 (float64 for float64).
    """

    def piece(x):
        h, label = x
        logits = logits_of(h, head)
        own = jnp.take_along_axis(logits, jnp.maximum(label, 0)[..., None], axis=-1)[..., 0]
        value = own - jax.nn.logsumexp(logits, axis=-1)
        best = own >= jnp.max(logits, axis=-1)
        return jnp.where(label >= 0, value, 0), jnp.where(label >= 0, best, False)

    places = labels.shape[1]
    values, best = jax.lax.map(
        jax.checkpoint(piece), (cut(hidden, chunk), cut(labels, chunk, fill=-1))
    )
    return joined(values, places), joined(best, places).astype(values.dtype)


def sums_by_sequence(values: jax.Array, segments: jax.Array, count: int) -> jax.Array:
    """Sums (B, S) of values (B, P) by the sequence that each belongs to; count: S."""
    hot = segments[..., None] == jnp.arange(count)
    return jnp.sum(jnp.where(hot, values[..., None], 0), axis=1)


def cut(x: jax.Array, chunk: int, fill: int = 0) -> jax.Array:
    """(B, P, ...) -> (pieces, B, C, ...), filled up with `fill`; chunk 0 or above P: one piece."""
    rows, places = x.shape[:2]
    chunk = min(chunk, places) or places
    pieces = -(-places // chunk)
    padding = [(0, 0), (0, pieces * chunk - places)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding, constant_values=fill)
    return jnp.moveaxis(x.reshape(rows, pieces, chunk, *x.shape[2:]), 1, 0)


def joined(x: jax.Array, places: int) -> jax.Array:
    """(pieces, B, C) -> (B, P), the opposite of `cut`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :places]
