"""Sums over the steps since the last log record; saved, so that a resume changes no record."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pangu_jax.training.step import StepOutputs


@dataclasses.dataclass
class LogWindow:
    """Running sums, in float64.

    Means are over the weight of all steps of the window; grad_norm is the mean over its steps.
    """

    steps: int = 0
    skipped: int = 0
    total: float = 0.0
    weight: float = 0.0
    grad_norm: float = 0.0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, row: StepOutputs) -> None:
        """Adds one step's numbers (Python floats)."""
        if not row.applied:
            self.skipped += 1
            return
        self.steps += 1
        self.total += row.total
        self.weight += row.weight
        self.grad_norm += row.grad_norm
        for name, value in row.metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """The window's means; the window starts anew."""

        def mean(value: float, over: float) -> float:
            return value / over if over else math.nan

        values = {"loss": mean(self.total, self.weight)}
        values |= {name: mean(value, self.weight) for name, value in self.metrics.items()}
        values["grad_norm"] = mean(self.grad_norm, self.steps)
        if self.skipped:
            values["skipped"] = self.skipped
        self.__init__()
        return values

    def to_json(self) -> dict[str, Any]:
        """State for the checkpoint; Python writes floats so that they read back exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LogWindow:
        """The inverse of `to_json`."""
        return cls(**value)
