"""Most popular: ranks every item by its number of training interactions."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class MostPopularConfig:
    """Nothing to choose; `half_life_days` > 0 weighs an event by 2^(-age / half-life)."""

    half_life_days: float = 0.0

    def __post_init__(self):
        if self.half_life_days < 0:
            raise ValueError(f"half_life_days={self.half_life_days} must not be negative")


def popularity_table(
    items: np.ndarray, timestamps: np.ndarray, num_items: int, config: MostPopularConfig
) -> np.ndarray:
    """Popularity as an item table of width 1, (num_items + 1, 1) float32.

    items, timestamps: one entry per training interaction; timestamps in seconds.
    """
    weights = None
    if config.half_life_days:
        age_days = (timestamps.max() - timestamps) / 86_400
        weights = np.exp2(-age_days / config.half_life_days)
    counts = np.bincount(items, weights=weights, minlength=num_items + 1)[: num_items + 1]
    counts[0] = 0
    return counts[:, None].astype(np.float32)
