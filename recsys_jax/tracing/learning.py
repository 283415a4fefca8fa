"""The training loss of models with a loss: single step, or on their own answers.

Letters: B students, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pangu_jax.training.state import LossSums
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.config import LearningConfig
from recsys_jax.tracing.models.losses import bce, masked_mean
from recsys_jax.tracing.rollout import rollout


def observed_steps(config: LearningConfig, mask: jax.Array, key: jax.Array) -> jax.Array:
    """bool (B, T): steps whose true response the model reads in training."""
    if config.supervision == "true":
        return jnp.ones_like(mask)
    if config.supervision == "own":
        return jnp.zeros_like(mask)
    if config.supervision == "scheduled":
        return jax.random.uniform(key, mask.shape) < config.true_share
    draw = jax.random.uniform(key, (mask.shape[0], 1))
    cut = jnp.floor(draw * (jnp.sum(mask, -1, keepdims=True) + 1)).astype(jnp.int32)
    return jnp.arange(mask.shape[1]) < cut


def make_loss(
    model: nn.Module, config: LearningConfig, answers: float | None = None
) -> Callable[[Any, Batch, jax.Array, dict[str, Any]], LossSums]:
    """(params, batch, key, arguments) -> sums of the cross-entropy and of what the model sows.

    Where the supervision is not 'true' the batch's responses are replaced by what a sampled
    roll-out of the same parameters was fed, without dropout, and no gradient flows through them.
    Losses that a model sows then speak of the responses that it was fed. arguments: keyword
    arguments of the model's call.

    answers: of an average batch. Where it is given the gradient is that of the batch's sum divided
    by this number, so that an answer in a batch of few counts as much as any other.
    """

    def loss(params, batch: Batch, key: jax.Array, arguments: dict[str, Any]) -> LossSums:
        observe_key, feed_key, dropout_key = jax.random.split(key, 3)
        fed = batch
        if config.supervision != "true":
            observed = observed_steps(config, batch.mask, observe_key)
            _, responses = rollout(
                model, {"params": jax.lax.stop_gradient(params)}, batch, observed,
                feedback="sample", key=feed_key, with_responses=True,
            )  # fmt: skip
            fed = batch._replace(responses=jax.lax.stop_gradient(responses))
        logits, sown = model.apply(
            {"params": params}, fed, train=True, rngs={"dropout": dropout_key},
            mutable=["losses"], **arguments,
        )  # fmt: skip
        nll = masked_mean(bce(logits, batch.responses), batch.mask)
        further = sum(jax.tree.leaves(sown), jnp.zeros(()))
        weight = jnp.sum(batch.mask).astype(jnp.float32)
        metrics = {"bce": nll * weight, "further_losses": further * weight}
        divisor = weight if answers is None else jnp.float32(answers)
        return LossSums((nll + further) * weight, divisor, metrics)

    return loss
