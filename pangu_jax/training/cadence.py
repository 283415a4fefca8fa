"""At which steps things happen. Pure functions of the step, so that a resumed run repeats them."""

from __future__ import annotations

from pangu_jax.training.config import TrainConfig


def dispatch_size(config: TrainConfig, step: int) -> int:
    """Steps of the dispatch that starts at `step`: steps_per_dispatch, or 1 where an evaluation,
    a checkpoint or the end comes sooner (so at most two programs are compiled)."""
    left = config.steps - step
    for every in (config.eval_every, config.checkpoint_every):
        if every:
            left = min(left, every - step % every)
    return config.steps_per_dispatch if left >= config.steps_per_dispatch else 1


def evaluation_due(config: TrainConfig, step: int, last_eval_step: int) -> bool:
    """Whether `step` steps done call for an evaluation that has not been made yet."""
    if step == 0 or last_eval_step >= step:
        return False
    return step >= config.steps or bool(config.eval_every) and step % config.eval_every == 0


def checkpoint_due(config: TrainConfig, step: int) -> bool:
    """Whether `step` steps done call for a checkpoint."""
    return bool(config.checkpoint_every) and step % config.checkpoint_every == 0


def log_due(config: TrainConfig, step: int) -> bool:
    """Whether a log record ends with `step` steps done."""
    return step % config.log_every == 0 or step == config.steps
