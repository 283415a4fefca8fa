"""Direct preference optimisation: Rafailov et al., arXiv 2305.18290.

Letters: B rows, G pairs of a row.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pangu_jax.training.state import LossSums


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """beta: strength of the pull towards the reference. label_smoothing: chance that a pair's label
    is wrong (Eq. 3 of Mitchell's note on conservative DPO, reconstructed). sft_weight: factor of
    the better answer's negative log-likelihood per token, added to the loss (the extra term of
    arXiv 2404.19733, Eq. 1). reference: 'step' runs the reference in every step, 'cached' once over
    all pairs before training."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    reference: str = "cached"

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"dpo.beta={self.beta} must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"dpo.label_smoothing={self.label_smoothing} must be in [0, 0.5)")
        if self.sft_weight < 0:
            raise ValueError(f"dpo.sft_weight={self.sft_weight} must not be negative")
        if self.reference not in ("step", "cached"):
            raise ValueError(f"dpo.reference={self.reference!r} is not one of step, cached")


def dpo_loss(
    policy: jax.Array,
    reference: jax.Array,
    tokens: jax.Array,
    weights: jax.Array,
    config: DpoConfig,
) -> LossSums:
    """Sum over pairs of weight * -log sigmoid(beta * margin) (Eq. 7), and its extensions.

    margin = (log pi(w) - log ref(w)) - (log pi(l) - log ref(l)), w the better answer, l the worse.

    Args:
      policy, reference: (B, G, 2) log-probabilities of whole answers, the better one first. The
        reference is constant to differentiation.
      tokens: (B, G, 2), learned tokens of each answer. weights: (B, G), 0 where there is no pair.

    Returns:
      LossSums with metrics reward_margin, reward_accuracy (share of pairs whose margin is above 0),
      chosen_reward, rejected_reward (beta times the log-ratio), chosen_nll (per token).
    """
    reference = jax.lax.stop_gradient(reference)
    rewards = config.beta * (policy - reference)
    margin = rewards[..., 0] - rewards[..., 1]
    eps = config.label_smoothing
    loss = -(1 - eps) * jax.nn.log_sigmoid(margin) - eps * jax.nn.log_sigmoid(-margin)
    nll = -policy[..., 0] / jnp.maximum(tokens[..., 0], 1)
    loss += config.sft_weight * nll
    there = weights > 0

    def total(x):
        return jnp.sum(jnp.where(there, weights * x, 0))

    return LossSums(
        total=total(loss),
        weight=jnp.sum(weights),
        metrics={
            "reward_margin": total(margin),
            "reward_accuracy": total((margin > 0).astype(margin.dtype)),
            "chosen_reward": total(rewards[..., 0]),
            "rejected_reward": total(rewards[..., 1]),
            "chosen_nll": total(nll),
        },
    )
