"""The terms of both losses: scores, gradient penalty, reward, advantages, policy and value.

Source: the released code, spec sections 1.6 to 1.8. Letters: B students, T steps, N rows, S width
of a state.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.randomness import hash_bits

# -log(1 - D + 1e-10) cannot exceed this.
LARGEST_REWARD = 23.025850929940457


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x where mask; 0 where there is nothing."""
    return jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(jnp.sum(mask), 1)


def binary_nll(logits: jax.Array, responses: jax.Array) -> jax.Array:
    """-log p(response) elementwise, from logits; responses 0 or 1."""
    return nn.softplus(logits) - responses * logits


def reward_of(logits: jax.Array) -> jax.Array:
    """-log(1 - sigmoid(logit)), at most `LARGEST_REWARD`; 0 or more."""
    return jnp.minimum(nn.softplus(logits), LARGEST_REWARD)


def value_targets(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, discount: float, terminal: str
) -> jax.Array:
    """(B, T): R_t + discount * V(s_t).

    values: (B, T), V(s_t). terminal: 'bootstrap' also at the last real step, 'zero' not.
    """
    if terminal == "zero":
        followed = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
        values = jnp.where(followed, values, 0)
    return rewards + discount * values


def advantages(deltas: jax.Array, mask: jax.Array, decay: float) -> jax.Array:
    """(B, T): A_t = delta_t + decay * A_(t+1) over the real steps, 0 in padding."""

    def step(later, x):
        delta, real = x
        now = jnp.where(real, delta + decay * later, 0)
        return now, now

    start = jnp.zeros(deltas.shape[0], deltas.dtype)
    _, result = jax.lax.scan(step, start, (deltas.T, mask.T), reverse=True)
    return result.T


def smooth_l1(x: jax.Array, target: jax.Array) -> jax.Array:
    """torch's SmoothL1 with beta 1, elementwise."""
    error = jnp.abs(x - target)
    return jnp.where(error < 1, 0.5 * error * error, error - 0.5)


def actor_critic_loss(
    nll: jax.Array,
    rewards: jax.Array,
    values: jax.Array,
    start_value: jax.Array,
    mask: jax.Array,
    *,
    discount: float,
    decay: float,
    terminal: str,
    normalize: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Policy-gradient and value loss, means over the real steps (spec 1.7).

    Args:
      nll: (B, T), -log of the probability of each sampled response.
      rewards: (B, T), constant to differentiation.
      values: (B, T), V(s_t). start_value: scalar, V of the zero state before the first step.
      mask: bool (B, T).
      normalize: shift and scale the advantages to mean 0 and deviation 1 over the real steps.

    Returns:
      (policy loss, whose gradient does not reach the values; value loss).
    """
    start = jnp.broadcast_to(start_value, (values.shape[0], 1))
    before = jnp.concatenate([start, values[:, :-1]], -1)
    rewards = jax.lax.stop_gradient(rewards)
    targets = jax.lax.stop_gradient(value_targets(rewards, values, mask, discount, terminal))
    gains = advantages(targets - jax.lax.stop_gradient(before), mask, decay)
    if normalize:
        centred = gains - masked_mean(gains, mask)
        gains = centred / jnp.sqrt(masked_mean(centred**2, mask) + 1e-8)
    return masked_mean(nll * gains, mask), masked_mean(smooth_l1(before, targets), mask)


def compact(states: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Real steps first, in order: states (B, T, S) as (B * T, S), and how many are real."""
    flat = mask.reshape(-1)
    order = jnp.argsort(~flat, stable=True)
    return states.reshape(-1, states.shape[-1])[order], jnp.sum(flat)


def gradient_penalty(
    score: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    real: tuple[jax.Array, jax.Array],
    other: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Mean of (||grad_s sigmoid(score(s))|| - 1)^2 at points between paired states.

    Args:
      score: state (S,) -> logit.
      key: typed key, for the place between the two of a pair.
      real, other: from `compact`; the first min(counts) rows are paired. As in the released code
        gradients flow on into both states.
    """
    rows = min(real[0].shape[0], other[0].shape[0])
    used = jnp.arange(rows) < jnp.minimum(real[1], other[1])
    share = ((hash_bits(key, (rows,)) >> 8).astype(jnp.float32) * 2.0**-24)[:, None]
    between = share * real[0][:rows] + (1 - share) * other[0][:rows]
    slope = jax.vmap(jax.grad(lambda s: nn.sigmoid(score(s))))(between)
    # The root has no finite slope at 0, where a padding row may stand.
    square = jnp.where(used, jnp.sum(slope * slope, -1), 1.0)
    return masked_mean((jnp.sqrt(square + 1e-12) - 1) ** 2, used)
