"""Which items a model learns from next: its own success over several samples decides.

The paper names a 'model-aware difficulty metric' and rounds that take in more samples as the model
improves; the number of samples, temperature and thresholds are not known and are options here.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agents_jax.llm import GenerateRequest, LanguageModel
from agents_jax.tools.bfcl.data import Item
from agents_jax.tools.bfcl.evaluate import judge
from agents_jax.tools.bfcl.prompts import Style, prompt_messages

Rule = Literal["solved", "random", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How items are chosen in a round. All defaults are ours.

    rule: 'solved' keeps what the model solves in some of its samples, 'random' as many items drawn
      at random (the control), 'none' all of them.
    samples: k per item. temperature: of the samples.
    min_solved, max_solved: an item qualifies with at least and at most so many right samples;
      max_solved None: k, so that what is always solved stays.
    share: of the qualifying items that is kept, drawn at random.
    seed: of samples and draws.
    """

    rule: Rule = "solved"
    samples: int = 8
    temperature: float = 1.0
    min_solved: int = 1
    max_solved: int | None = None
    share: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.rule not in ("solved", "random", "none"):
            raise ValueError(f"rule={self.rule!r} is unknown; allowed: solved, random, none.")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1.")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature={self.temperature} must be above 0: samples must be able to differ."
            )
        most = self.samples if self.max_solved is None else self.max_solved
        if not 0 <= self.min_solved <= most <= self.samples:
            raise ValueError(
                f"min_solved={self.min_solved} and max_solved={self.max_solved} do not fit "
                f"samples={self.samples}; 0 <= min_solved <= max_solved <= samples."
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1.")


@dataclasses.dataclass(frozen=True)
class Attempts:
    """A model's samples of one item: texts, and which of them BFCL's checker accepts."""

    texts: tuple[str, ...]
    correct: tuple[bool, ...]

    @property
    def solved(self) -> int:
        """Number of right samples, c of k."""
        return sum(self.correct)


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a round learns from.

    ids: of the chosen items, in the order of the items. solved: right samples of every item that
    was sampled, by id. samples: k. qualified: items within the rule's bounds, before `share`.
    """

    ids: tuple[str, ...]
    solved: dict[str, int]
    samples: int
    rule: Rule
    qualified: int

    def to_dict(self) -> dict[str, Any]:
        """Everything and the histogram as plain values, for JSON."""
        return dataclasses.asdict(self) | {
            "size": len(self.ids),
            "histogram": histogram(self.solved, self.samples),
        }


def item_seed(item: Item, seed: int) -> int:
    """The item's own seed: with one for all, their samples would use the same random numbers, and
    all of them would go wrong together.
    """
    return zlib.crc32(f"{seed} {item.id}".encode()) % 2**31


def sample_attempts(
    model: LanguageModel, items: Sequence[Item], config: SelectionConfig, *,
    style: Style = "compact", max_tokens: int = 96,
) -> dict[str, Attempts]:  # fmt: skip
    """k judged samples of each item, by id; an item's seed is its own, the same in every round.

    Raises:
      BatchError: some were not answered (those that were are kept where the model records).
    """
    requests = [
        GenerateRequest(
            messages=prompt_messages(item, style), n=config.samples, max_tokens=max_tokens,
            temperature=config.temperature,
            seed=item_seed(item, config.seed), tag=item.id,
        )
        for item in items
    ]  # fmt: skip
    out = {}
    for item, response in zip(items, model.generate(requests), strict=True):
        right = tuple(judge(item, text).correct for text in response.texts)
        out[item.id] = Attempts(response.texts, right)
    return out


def select(
    items: Sequence[Item], attempts: Mapping[str, Attempts], config: SelectionConfig, *,
    round_number: int = 1, size: int | None = None,
) -> Selection:  # fmt: skip
    """The items of a round.

    Args:
      attempts: of every item, by id.
      round_number: changes the draws of 'random' and of `share`.
      size: how many items 'random' draws; None: as many as 'solved' would keep.

    Raises:
      ValueError: a size that the items do not have.
    """
    solved = {item.id: attempts[item.id].solved for item in items}
    most = config.samples if config.max_solved is None else config.max_solved
    qualified = [item.id for item in items if config.min_solved <= solved[item.id] <= most]
    rng = np.random.default_rng([config.seed, round_number])
    kept = _draw(qualified, round(config.share * len(qualified)), rng)
    if config.rule == "none":
        kept = [item.id for item in items]
    elif config.rule == "random":
        kept = _draw([item.id for item in items], len(kept) if size is None else size, rng)
    return Selection(tuple(kept), solved, config.samples, config.rule, len(qualified))


def histogram(solved: Mapping[str, int], samples: int) -> list[int]:
    """Items with 0, 1, ..., k right samples."""
    return np.bincount(list(solved.values()), minlength=samples + 1).tolist() if solved else []


def transitions(before: Mapping[str, int], after: Mapping[str, int], samples: int) -> list:
    """Counts [k + 1][k + 1]: items with i right samples before and j after; common items only."""
    counts = np.zeros((samples + 1, samples + 1), int)
    for name in before.keys() & after.keys():
        counts[before[name], after[name]] += 1
    return counts.tolist()


def grows(sizes: Sequence[int], min_growth: float | None) -> bool:
    """Whether the last selection is larger than the one before by more than this share.

    Always true for the first one and for min_growth None. Source: rounds end when the number of
    samples no longer increases (second-hand); the threshold is ours.
    """
    if len(sizes) < 2 or min_growth is None:
        return True
    return sizes[-1] > sizes[-2] * (1 + min_growth)


def _draw(ids: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """So many of the ids at random, in their order."""
    if count > len(ids):
        raise ValueError(f"{count} items cannot be drawn from {len(ids)}.")
    chosen = np.sort(rng.choice(len(ids), count, replace=False)) if count else []
    return [ids[i] for i in chosen]
