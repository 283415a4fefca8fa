"""What a LoRA adapter is: its rank, its scale and the weights that it changes.

Source: Hu et al. (arXiv 2106.09685) section 4.1; rank-stabilised scale: Kalajdzievski
(arXiv 2312.03732).
"""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

from pangu_jax.models.lora.targets import Target

TARGETS: tuple[Target, ...] = get_args(Target)


class LoraError(ValueError):
    """An adapter that is wrong in itself or belongs to another base; the text says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """W becomes W + scale * A B, with A of `rank` columns and B of `rank` rows.

    alpha: scale = alpha / rank, or alpha / sqrt(rank) with rslora.
    targets: the weights that get such a pair, of every layer; kept in the order of `TARGETS`.
    dropout: chance with which an input of A is zeroed in training, where a 'dropout' rng is given.

    Raises:
      LoraError: a value that is not allowed; the text names it and what is.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[Target, ...] = TARGETS
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self):
        def refuse(field, allowed):
            raise LoraError(f"lora.{field}={getattr(self, field)!r} is not allowed; {allowed}.")

        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            refuse("rank", "a whole number of 1 or more is")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            refuse("alpha", "a positive number is")
        if not 0 <= self.dropout < 1:
            refuse("dropout", "0 (off) up to, but not, 1 is")
        names = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        unknown = [name for name in names if name not in TARGETS]
        if unknown or not names:
            refuse("targets", f"one or more of {', '.join(TARGETS)} are")
        ordered = tuple(name for name in TARGETS if name in names)
        object.__setattr__(self, "targets", ordered)

    @property
    def scale(self) -> float:
        """Factor of the product A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
