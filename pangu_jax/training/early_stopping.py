"""Which evaluation was the best, and whether it is time to stop. Survives a resume."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any


@dataclasses.dataclass
class BestTracker:
    """Follows one metric over the evaluations of a run.

    step, metrics: of the best evaluation so far (-1 and {} before the first).
    bad_evaluations: how many came since without a new best.
    last_eval_step: the newest evaluation, so that a run stopped before it evaluates first.
    """

    metric: str
    mode: str = "max"
    step: int = -1
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    bad_evaluations: int = 0
    last_eval_step: int = -1

    def update(self, step: int, metrics: dict[str, float]) -> bool:
        """Takes an evaluation; returns whether it is the best so far. A NaN never is.

        Raises:
          ValueError: the metric is not among the evaluation's; names the ones there are.
        """
        if self.metric not in metrics:
            close = difflib.get_close_matches(self.metric, metrics, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"train.best_metric is {self.metric!r}, but evaluation returns "
                f"{', '.join(sorted(metrics))}.{hint} Set --config.train.best_metric."
            )
        self.last_eval_step = step
        value = metrics[self.metric]
        sign = 1.0 if self.mode == "max" else -1.0
        better = not math.isnan(value) and (
            self.step < 0 or sign * value > sign * self.metrics[self.metric]
        )
        if better:
            self.step, self.metrics, self.bad_evaluations = step, dict(metrics), 0
        else:
            self.bad_evaluations += 1
        return better

    def should_stop(self, patience: int | None) -> bool:
        """Whether `patience` evaluations in a row brought nothing better."""
        return patience is not None and self.bad_evaluations >= patience

    def to_json(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BestTracker:
        """The inverse of `to_json`."""
        return cls(**value)
