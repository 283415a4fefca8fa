"""Settings of the training loop."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pangu_jax.parallel.mesh import MeshConfig
from pangu_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, and how often to report, evaluate and save. Cadences are in steps.

    steps: optimizer steps of the whole run.
    seed: of the initial parameters and of every step's random numbers.
    steps_per_dispatch: steps done by one call into the compiled program; saves host time where a
      step is short. Boundaries of the cadences below are kept: what is left before one is done
      in single steps.
    grad_accumulation: micro-batches per step; the batch stays the same, memory shrinks.
    log_every: steps averaged into one record of metrics.jsonl.
    eval_every: evaluation on the validation set; 0 = only after the last step.
    checkpoint_every: 0 = only when evaluating for the best, stopping or done.
    checkpoint_minutes: also after this much time.
    keep_checkpoints: how many of the newest to keep.
    best_metric, best_mode: which evaluation value chooses the best checkpoint.
    early_stopping_patience: end after this many evaluations in a row without a new best.
    nan_guard: 'stop' ends at a non-finite loss or gradient, with state and batch saved; 'skip'
      leaves that update out and goes on; 'off' does not look.
    prefetch: batches prepared ahead in a background thread.
    quick_compile: on a CPU, compile without LLVM's optimisations: for runs of a few steps, which
      it shortens; a longer run would lose by it.
    progress: a bar, plain lines, nothing, or whichever suits the output.
    """

    steps: int = 1000
    seed: int = 0
    steps_per_dispatch: int = 1
    grad_accumulation: int = 1
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 1000
    checkpoint_minutes: float | None = 10.0
    keep_checkpoints: int = 2
    best_metric: str = "ndcg@10"
    best_mode: Literal["max", "min"] = "max"
    early_stopping_patience: int | None = None
    nan_guard: Literal["stop", "skip", "off"] = "stop"
    prefetch: int = 2
    quick_compile: bool = False
    progress: Literal["auto", "bar", "plain", "none"] = "auto"
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self):
        for name, allowed in (
            ("best_mode", ("max", "min")),
            ("nan_guard", ("stop", "skip", "off")),
            ("progress", ("auto", "bar", "plain", "none")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}."
                )
        for name in (
            "steps",
            "steps_per_dispatch",
            "grad_accumulation",
            "log_every",
            "keep_checkpoints",
            "prefetch",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        for name in ("eval_every", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("early_stopping_patience", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0, or None for never.")
