"""Optimizers and learning-rate schedules by name, built from optax."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimizer with its schedule.

    learning_rate: peak value, reached after `warmup_steps` (linear from 0).
    schedule: what happens after the warm-up, over the remaining steps of the run (or up to
      `decay_steps` if set): stay constant, fall linearly or by a cosine to
      `final_fraction * learning_rate`, or fall with 1/sqrt(step).
    b1: first-moment decay, or the momentum of sgd.
    weight_decay: decoupled, times the learning rate; on all parameters, or only on those with
      two or more dimensions if `decay_matrices_only`.
    clip_norm: global gradient norm is scaled down to this before the optimizer sees it.
    """

    name: Literal["adamw", "adam", "sgd", "lion", "adagrad", "rmsprop"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine", "rsqrt"] = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_matrices_only: bool = False
    clip_norm: float | None = None

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be 0 or more.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm is {self.clip_norm}; it must be above 0, or None for no clipping."
            )
        if self.weight_decay and self.name not in ("adamw", "lion", "sgd"):
            raise ValueError(
                f"weight_decay is {self.weight_decay}, which {self.name!r} does not "
                "use; choose name='adamw', 'lion' or 'sgd', or set it to 0."
            )


def build_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate as a function of the (0-based) step, for a run of `total_steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    decay = (total_steps if config.decay_steps is None else config.decay_steps) - warmup
    final = peak * config.final_fraction
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, final, max(decay, 1))
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(decay, 1), alpha=config.final_fraction)
    elif config.schedule == "rsqrt":
        scale = max(warmup, 1)

        def main(step):
            return peak * (scale / (scale + step)) ** 0.5
    else:
        raise ValueError(
            f"schedule is {config.schedule!r}; allowed are constant, linear, cosine, rsqrt."
        )
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def build_optimizer(
    config: OptimizerConfig, total_steps: int, schedule: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """The optax chain: clipping, then the named optimizer with its schedule and decay.

    `schedule` (step -> rate) replaces the one that the config describes.
    """
    rate = schedule or build_schedule(config, total_steps)

    def mask(params):
        return jax.tree.map(lambda p: not config.decay_matrices_only or p.ndim >= 2, params)

    if config.name == "adamw":
        core = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=mask,
        )
    elif config.name == "adam":
        core = optax.adam(rate, b1=config.b1, b2=config.b2, eps=config.eps)
    elif config.name == "lion":
        core = optax.lion(
            rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=mask
        )
    elif config.name == "sgd":
        core = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask)
            if config.weight_decay
            else optax.identity(),
            optax.sgd(rate, momentum=config.b1 or None),
        )
    elif config.name == "adagrad":
        core = optax.adagrad(rate, eps=config.eps)
    elif config.name == "rmsprop":
        core = optax.rmsprop(rate, decay=config.b2, eps=config.eps)
    else:
        raise ValueError(
            f"optimizer name is {config.name!r}; allowed are adamw, adam, sgd, lion, "
            "adagrad, rmsprop."
        )
    if config.clip_norm is None:
        return core
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), core)
