"""Losses over real steps, for the terms that models sow into 'losses'."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def bce(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy in nats per element; targets in [0, 1]."""
    return jnp.logaddexp(0.0, logits) - targets * logits


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of values where the bool mask of the same shape is True; 0 where it never is."""
    # where, not a product: a padded step's value may be infinite.
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def masked_bce(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean binary cross-entropy over real steps, in nats."""
    return masked_mean(bce(logits, targets), mask)
