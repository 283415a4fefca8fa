"""Counting loss spikes: steps whose loss stands far above what it has been lately."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

WARM_UP = 50  # steps before anything counts: the loss falls too fast to have a level
# Of the running mean and variance, about 10 and 30 steps: a slower mean would take the fall of the
# loss for noise.
MEAN_DECAY, VARIANCE_DECAY = 0.9, 0.97
SIGMAS, LEAST = 6.0, 0.1  # a spike is above mean + max(6 standard deviations, 0.1 nats)


@dataclasses.dataclass
class SpikeCounter:
    """Running level of the loss and the number of spikes so far; saved with a checkpoint.

    A run of neighbouring steps above the threshold is one spike. It enters the mean cut at the
    threshold and the variance not at all, so that it does not hide the next one, yet a lasting
    rise becomes the level.
    The definition is ours; the Pangu Ultra report shows spikes and defines none.
    """

    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0
    count: int = 0
    above: bool = False

    def add(self, loss: float) -> bool:
        """Takes one step's loss; True if a spike begins with it."""
        if not math.isfinite(loss):
            return False
        self.steps += 1
        if self.steps == 1:
            self.mean = loss
            return False
        limit = self.mean + max(SIGMAS * math.sqrt(self.variance), LEAST)
        high = self.steps > WARM_UP and loss > limit
        begins = high and not self.above
        self.above = high
        self.count += begins
        seen = min(loss, limit) if self.steps > WARM_UP else loss
        gap = seen - self.mean
        self.mean += (1 - MEAN_DECAY) * gap
        if not high:
            self.variance += (1 - VARIANCE_DECAY) * (gap * gap - self.variance)
        return begins

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> SpikeCounter:
        return cls(**(value or {}))
