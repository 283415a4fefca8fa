"""The two losses of AdvKT as functions of both networks' parameters.

Source: the released code, spec sections 1.5 to 1.8. The order of updates is training.py's matter.
Letters: B students, T steps.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.tracing.advkt import augment
from recsys_jax.tracing.advkt.config import AdversarialConfig
from recsys_jax.tracing.advkt.discriminator import Discriminator
from recsys_jax.tracing.advkt.draws import choose, uniforms
from recsys_jax.tracing.advkt.generator import Generator
from recsys_jax.tracing.advkt.losses import (
    actor_critic_loss,
    binary_nll,
    compact,
    gradient_penalty,
    masked_mean,
    reward_of,
)
from recsys_jax.tracing.advkt.real_rows import loss_of_real_rows
from recsys_jax.tracing.advkt.tables import QuestionTables
from recsys_jax.tracing.advkt.unrolling import Unrolled
from recsys_jax.tracing.batch import Batch

Params = dict[str, Any]
Loss = tuple[jax.Array, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Objectives:
    """Losses of a generator and a discriminator.

    Parameters of both are {'generator': ..., 'discriminator': ...}; every loss is constant to
    differentiation in the network that is not its own.
    """

    generator: Generator
    discriminator: Discriminator
    config: AdversarialConfig

    def generator_loss(
        self, params: Params, batch: Batch, tables: QuestionTables, key: jax.Array
    ) -> Loss:
        """Mean loss of the generator on a batch, and its parts (spec 1.8).

        Parts: 'bce', 'question', and with rl_weight 'policy', 'value', 'reward' (means over
        steps) and 'generated_right' (share of right responses on random walks).
        """
        config, params = self.config, _learning(params, "generator")
        feed_key, cut_key, walk_key, dropout_key = jax.random.split(key, 4)
        observed = self._observed(batch, cut_key)
        unrolled = self._unroll(params, batch, observed, feed_key, dropout_key)
        bce = masked_mean(binary_nll(unrolled.logits, batch.responses), batch.mask)
        loss, metrics = config.bce_weight * bce, {"bce": bce}
        weight = self.generator.config.question_loss_weight
        if weight > 0:
            nll = self._generator(
                params, "question_nll", unrolled, batch.questions, batch.mask, key=dropout_key
            )
            metrics["question"] = masked_mean(nll, batch.mask)
            loss += weight * metrics["question"]
        if config.rl_weight > 0:
            if config.policy_on == "walks":
                both, further = self.reinforce(params, batch, tables, walk_key)
            elif config.supervision == "random_prefix":
                # The roll-out above is one of continuations already.
                both, further = self._actor_critic(params, batch, unrolled, ~observed)
            else:
                both, further = self.reinforce_continuations(params, batch, walk_key)
            loss += config.rl_weight * both
            metrics |= further
        return loss, metrics

    def reinforce(
        self, params: Params, batch: Batch, tables: QuestionTables, key: jax.Array
    ) -> Loss:
        """Policy and value loss on fresh random walks (spec 1.7), and metrics."""
        walk_key, sample_key, dropout_key = jax.random.split(key, 3)

        def loss(own: Params, walks: Batch) -> Loss:
            both = params | {"generator": own}
            observed = jnp.zeros_like(walks.mask)
            unrolled = self._unroll(both, walks, observed, sample_key, dropout_key)
            return self._actor_critic(both, walks, unrolled, ~observed)

        walks = self.walks(batch, tables, walk_key)
        return loss_of_real_rows(loss, params["generator"], walks)

    def reinforce_continuations(self, params: Params, batch: Batch, key: jax.Array) -> Loss:
        """As `reinforce`, on students' own questions after a uniform cut (ours)."""
        cut_key, sample_key, dropout_key = jax.random.split(key, 3)
        observed = observed_prefix(batch, cut_key)
        unrolled = self._unroll(params, batch, observed, sample_key, dropout_key)
        return self._actor_critic(params, batch, unrolled, ~observed)

    def _actor_critic(
        self, params: Params, asked: Batch, unrolled: Unrolled, own: jax.Array
    ) -> Loss:
        """own: bool (B, T), steps whose response is the generator's."""
        config, mask = self.config, asked.mask & own
        answered = asked._replace(responses=unrolled.responses.astype(jnp.int32))
        rewards, states = self.rewards(params, answered)
        values = self._generator(params, "value", states)
        start = self._generator(params, "value", jnp.zeros_like(states[0, 0]))
        policy, value = actor_critic_loss(
            binary_nll(unrolled.logits, answered.responses),
            rewards,
            values,
            start,
            mask,
            discount=config.discount,
            decay=config.advantage_decay,
            terminal=config.terminal,
            normalize=config.normalize_advantages,
        )
        return policy + value, {
            "policy": policy,
            "value": value,
            "reward": masked_mean(rewards, mask),
            "generated_right": masked_mean(unrolled.responses, mask),
        }

    def rewards(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Reward (B, T) of each response and the states (B, T, 3 D), constant to
        differentiation."""
        released = self.config.reward_response == "released"
        rows = jnp.zeros_like(batch.questions) if released else None
        scores = self._discriminator(params, "__call__", batch, rows=rows)
        return jax.lax.stop_gradient((reward_of(scores.logits), scores.states))

    def discriminator_loss(
        self, params: Params, batch: Batch, tables: QuestionTables, key: jax.Array
    ) -> Loss:
        """Mean loss of the discriminator on a batch, and its parts (spec 1.6, without the
        constant 10).

        Parts: mean scores 'real', 'augmented', 'generated', 'flipped', 'short' (of those that
        are not left out), 'flip_accuracy' (share of steps whose true response scores higher),
        'gradient_penalty', 'constraint'.
        """
        config, params = self.config, _learning(params, "discriminator")
        names = ("augment", "walk", "sample", "gp_generated", "gp_flipped", *"abcde")
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        real = self._discriminator(params, "__call__", batch, key=keys["a"])
        total, count = _scores(real.logits, batch.mask)
        metrics = {"real": total / jnp.maximum(count, 1)}
        loss, penalty = jnp.zeros(()), jnp.zeros(())
        if config.augmented_weight > 0:
            weight = config.augmented_weight
            views = self.views(batch, tables, keys["augment"])
            augmented = self._discriminator(params, "__call__", views, key=keys["b"])
            more, steps = _scores(augmented.logits, views.mask)
            metrics["augmented"] = more / jnp.maximum(steps, 1)
            loss -= weight * (metrics["real"] - metrics["augmented"])
            total, count = total + weight * more, count + weight * steps
        loss -= total / jnp.maximum(count, 1e-9)
        states = compact(real.states, batch.mask)
        flips = config.flip_weight * jnp.sum(batch.mask)
        asked, observed = self._asked(batch, tables, keys["walk"])
        answers = config.generated_weight * jnp.sum(asked.mask & ~observed)
        share = 1 / jnp.maximum(flips + answers, 1e-9)  # of a score in the mean of both
        if config.flip_weight > 0:
            flipped = self._discriminator(params, "score_flipped", batch, key=keys["d"])
            total, count = _scores(flipped.logits, batch.mask)
            loss += config.flip_weight * share * total
            metrics["flipped"] = total / jnp.maximum(count, 1)
            metrics["flip_accuracy"] = masked_mean(real.logits > flipped.logits, batch.mask)
            penalty = self._penalty(params, keys["gp_flipped"], states, flipped.states, batch.mask)
            loss += config.gp_weight * penalty
        if config.generated_weight > 0:
            more, further = self._generated_loss(params, asked, observed, states, share, keys)
            loss, penalty = loss + more, penalty + further.pop("penalty")
            metrics |= further
        if config.short_weight > 0:
            questions = jnp.arange(1, self.discriminator.config.num_questions + 1)
            logits = self._discriminator(
                params, "score_single", questions, tables.concepts[1:], key=keys["e"]
            )
            metrics["short"] = jnp.mean(nn.sigmoid(logits))
            loss -= config.short_weight * metrics["short"]
        if config.constraint_weight > 0:
            nll = self._discriminator(
                params, "question_nll", real, batch.questions, batch.mask, key=keys["a"]
            )
            logits = self._discriminator(params, "response_logits", real, key=keys["a"])
            nll += binary_nll(logits, batch.responses)
            metrics["constraint"] = masked_mean(nll, batch.mask)
            loss += config.constraint_weight * metrics["constraint"]
        if config.gp_weight > 0:
            metrics["gradient_penalty"] = penalty
        return loss, metrics

    def _generated_loss(
        self, params: Params, asked: Batch, observed: jax.Array, states, share: jax.Array, keys
    ) -> Loss:
        """Weighted scores of generated responses and their gradient penalty; both as metrics.

        states: true ones, from `compact`. share: of one score in the mean of the negatives.
        """
        config, (real, count) = self.config, states

        def loss(values, asked: Batch) -> Loss:
            own, real = values
            both = params | {"discriminator": own}
            hidden = observed[: asked.mask.shape[0]]
            answered, mask = self.generated(both, asked, hidden, keys["sample"])
            made = self._discriminator(both, "__call__", answered, key=keys["c"])
            penalty = self._penalty(both, keys["gp_generated"], (real, count), made.states, mask)
            total, steps = _scores(made.logits, mask)
            value = config.generated_weight * share * total + config.gp_weight * penalty
            return value, {"generated": total / jnp.maximum(steps, 1), "penalty": penalty}

        values = params["discriminator"], real
        if config.policy_on == "walks":
            return loss_of_real_rows(loss, values, asked)
        return loss(values, asked)

    def _penalty(self, params, key, rows, states: jax.Array, mask: jax.Array) -> jax.Array:
        """Gradient penalty between rows of true states (from `compact`) and other states."""
        if not self.config.gp_weight > 0:
            return jnp.zeros(())
        score = functools.partial(self._discriminator, params, "score_state")
        return gradient_penalty(score, key, rows, compact(states, mask))

    # Data for the losses

    def views(self, batch: Batch, tables: QuestionTables, key: jax.Array) -> Batch:
        """The four augmentations of a batch, one below the other: Batch (4 B, T)."""
        config, sizes = self.config, self.discriminator.config
        keys = jax.random.split(key, 4)
        views = (
            augment.mask_steps(
                keys[0], batch, config.mask_prob, sizes.mask_question, sizes.mask_concept
            ),
            augment.replace_questions(keys[1], batch, config.replace_prob, tables),
            augment.crop(keys[2], batch, config.crop_ratio),
            augment.permute(keys[3], batch, config.permute_ratio),
        )
        return jax.tree.map(lambda *x: jnp.concatenate(x), *views)

    def _asked(
        self, batch: Batch, tables: QuestionTables, key: jax.Array
    ) -> tuple[Batch, jax.Array]:
        """What the generator is to answer, and bool (B, T), steps that it is shown: random walks,
        or the batch after a cut (`policy_on`)."""
        if self.config.policy_on == "walks":
            walks = self.walks(batch, tables, key)
            return walks, jnp.zeros_like(walks.mask)
        return batch, observed_prefix(batch, key)

    def walks(self, batch: Batch, tables: QuestionTables, key: jax.Array) -> Batch:
        """Random walks that go with a batch: max(steps // step_share, 1) of them are real."""
        config = self.config
        rows, length = batch.mask.shape
        most = max(rows * length // config.step_share, 1)
        most = most if config.walk_rows is None else min(most, config.walk_rows)
        steps = jnp.sum(batch.mask)
        active = jnp.clip(steps // config.step_share, 1, most)
        least = max(int(length * config.walk_min_fraction), 1)
        return augment.random_walks(key, tables, most, length, least, active)

    def generated(
        self, params: Params, asked: Batch, observed: jax.Array, key: jax.Array
    ) -> tuple[Batch, jax.Array]:
        """A batch answered by the generator where not observed, constant to differentiation, and
        bool (B, T): the steps whose response is its own."""
        unrolled = self._unroll(params, asked, observed, key, None)
        responses = jax.lax.stop_gradient(unrolled.responses).astype(jnp.int32)
        answered = asked._replace(responses=jnp.where(asked.mask, responses, 0))
        return answered, asked.mask & ~observed

    def _observed(self, batch: Batch, key: jax.Array) -> jax.Array:
        if self.config.supervision == "true":
            return jnp.ones_like(batch.mask)
        if self.config.supervision == "own":
            return jnp.zeros_like(batch.mask)
        return observed_prefix(batch, key)

    def _unroll(self, params, batch, observed, key, dropout_key) -> Unrolled:
        return self._generator(
            params, "unroll", batch, observed=observed, feed_key=key, key=dropout_key
        )

    def _generator(self, params, method, *args, feed_key=None, key=None, **kwargs):
        """A method of the generator; dropout where a key is given."""
        if feed_key is not None:
            kwargs["key"] = feed_key
        return _apply(self.generator, params["generator"], method, args, kwargs, key)

    def _discriminator(self, params, method, *args, key=None, **kwargs):
        return _apply(self.discriminator, params["discriminator"], method, args, kwargs, key)


def _learning(params: Params, name: str) -> Params:
    """Both networks' parameters, the other network's constant to differentiation."""
    return jax.lax.stop_gradient(params) | {name: params[name]}


def observed_prefix(batch: Batch, key: jax.Array) -> jax.Array:
    """bool (B, T): steps before a cut that is uniform between 0 and a student's length."""
    draw = uniforms(key, batch.mask.shape[0], 1)
    cut = choose(draw, jnp.sum(batch.mask, -1, keepdims=True) + 1)
    return jnp.arange(batch.mask.shape[1]) < cut


def _apply(module: nn.Module, params, method: str, args, kwargs, key):
    if key is not None:
        kwargs["train"] = True
    rngs = None if key is None else {"dropout": key}
    return module.apply({"params": params}, *args, method=method, rngs=rngs, **kwargs)


def _scores(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of the scores of the real steps, and how many they are."""
    return jnp.sum(jnp.where(mask, nn.sigmoid(logits), 0)), jnp.sum(mask)
