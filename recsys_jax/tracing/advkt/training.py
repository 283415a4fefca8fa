"""Alternating updates of generator and discriminator, as a step program for the training loop.

program = AdversarialProgram(Objectives(generator, discriminator, config))
fit(init_fn=program.init_params, loss_fn=None, program=program, frozen=tables, dataset=...)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pangu_jax.training.state import LossSums, TrainState
from recsys_jax.tracing.advkt.config import (
    AdversarialConfig,
    DiscriminatorConfig,
    GeneratorConfig,
)
from recsys_jax.tracing.advkt.discriminator import Discriminator
from recsys_jax.tracing.advkt.generator import Generator
from recsys_jax.tracing.advkt.objectives import Objectives, Params
from recsys_jax.tracing.advkt.tables import QuestionTables
from recsys_jax.tracing.batch import Batch


def build(
    generator: GeneratorConfig, discriminator: DiscriminatorConfig, config: AdversarialConfig
) -> AdversarialProgram:
    """The program of both networks.

    Raises:
      ValueError: the two are not about the same questions and concepts.
    """
    for name in ("num_questions", "num_concepts", "dim"):
        ours, theirs = getattr(generator, name), getattr(discriminator, name)
        if ours != theirs:
            raise ValueError(
                f"{name} is {ours} for the generator and {theirs} for the discriminator; "
                "give both the same."
            )
    return AdversarialProgram(
        Objectives(Generator(generator), Discriminator(discriminator), config)
    )


@dataclasses.dataclass(frozen=True)
class AdversarialProgram:
    """One training step: the discriminator at every n-th, then the generator (spec 1.9).

    Without rl_weight there are no rewards, and the discriminator stays as it began.

    Both use Adam without decay or clipping. The generator's rewards come from the discriminator
    as it is after its own update.
    """

    objectives: Objectives

    def init_params(self, key: jax.Array) -> Params:
        """{'generator': ..., 'discriminator': ...}, in boxes with logical axis names."""
        ones = jnp.ones((1, 2), jnp.int32)
        batch = Batch(ones, ones[..., None], ones, ones.astype(bool))
        first, second = jax.random.split(key)
        return {
            "generator": self.objectives.generator.init(first, batch)["params"],
            "discriminator": self.objectives.discriminator.init(second, batch)["params"],
        }

    def init(self, params: Params) -> dict[str, Any]:
        """States of the two optimisers."""
        return {name: self._optimizer(name).init(params[name]) for name in params}

    def advance(
        self, state: TrainState, batch: Batch, rng: jax.Array, tables: QuestionTables
    ) -> tuple[Params, dict[str, Any], LossSums, jax.Array]:
        """New parameters, new optimiser states, the sums to log and the gradient norm of both.

        Logged loss: the generator's. Values of the discriminator are scaled so that their mean
        over all steps is the mean over the steps at which it learned.
        """
        every = self.objectives.config.discriminator_every
        params, opt_state = dict(state.params), dict(state.opt_state)
        d_key, g_key = jax.random.split(rng)

        def learn(_):
            return self._update("discriminator", params, opt_state, batch, tables, d_key)

        if not self.objectives.config.rl_weight:
            # Nothing asks the discriminator for rewards: it need not learn.
            zero = jnp.zeros(())
            learned = (*(x["discriminator"] for x in (params, opt_state)), zero, {}, zero)
        elif every == 1:
            learned = learn(None)
        else:
            shapes = jax.eval_shape(learn, None)

            def rest(_):
                zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[2:])
                return params["discriminator"], opt_state["discriminator"], *zeros

            learned = jax.lax.cond(state.step % every == 0, learn, rest, None)
        params["discriminator"], opt_state["discriminator"], d_loss, d_metrics, d_norm = learned

        new = self._update("generator", params, opt_state, batch, tables, g_key)
        params["generator"], opt_state["generator"], g_loss, g_metrics, g_norm = new

        weight = jnp.maximum(jnp.sum(batch.mask), 1).astype(g_loss.dtype)
        metrics = {f"generator_{name}": x for name, x in g_metrics.items()}
        metrics |= {f"discriminator_{name}": every * x for name, x in d_metrics.items()}
        metrics["discriminator_loss"] = every * d_loss
        sums = LossSums(g_loss * weight, weight, {n: x * weight for n, x in metrics.items()})
        return params, opt_state, sums, jnp.sqrt(g_norm**2 + d_norm**2)

    def _update(self, name: str, params, opt_state, batch, tables, key):
        losses = {
            "generator": self.objectives.generator_loss,
            "discriminator": self.objectives.discriminator_loss,
        }

        def loss_of(own):
            return losses[name](params | {name: own}, batch, tables, key)

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(params[name])
        updates, new = self._optimizer(name).update(grads, opt_state[name], params[name])
        updated = optax.apply_updates(params[name], updates)
        return updated, new, loss, metrics, optax.global_norm(grads)

    def _optimizer(self, name: str) -> optax.GradientTransformation:
        return optax.adam(getattr(self.objectives.config, f"{name}_rate"))
