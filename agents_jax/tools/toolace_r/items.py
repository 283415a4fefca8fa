"""The items of a run: to learn from, to warm up on, to watch the loss on, to test on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from agents_jax.tools.bfcl.data import AST_CATEGORIES, Item, load
from agents_jax.tools.bfcl.gold import is_solvable
from agents_jax.tools.bfcl.splits import Split, split_by_category, split_by_function
from agents_jax.tools.toolace_r.config import ItemsConfig, RoundsConfig


@dataclasses.dataclass(frozen=True)
class Parts:
    """pool: what rounds select from, warm-up items among them. No two of pool, validation and test
    share an item; test shares no function and no question with the other two.
    """

    pool: tuple[Item, ...]
    warm_up: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    dropped: dict[str, int]

    def ids(self) -> dict[str, list[str]]:
        """Ids of each part, for JSON."""
        return {name: [i.id for i in getattr(self, name)] for name in _NAMES}

    def sizes(self) -> dict[str, dict[str, int]]:
        """Items of each part by category."""
        return {name: _count(getattr(self, name)) for name in _NAMES}


_NAMES = ("pool", "warm_up", "validation", "test")


def make_parts(
    config: ItemsConfig, rounds: RoundsConfig, num_tokens: Callable[[Item], int] | None,
    *,
    cache: Path | None = None,
) -> Parts:  # fmt: skip
    """Draws the parts; the same configuration gives the same on every machine.

    Args:
      num_tokens: of an item's prompt; None where no tokenizer is at hand: no item is too long.

    Raises:
      ValueError: nothing is left to train or to test on. BfclDataError, WheelError.
    """
    split = _split(config, num_tokens, cache)
    rng = np.random.default_rng([config.seed, 1])
    test = _take(split.held_out, config.test, rng)
    candidates = [i for i in split.train if i.category in config.train and is_solvable(i)]
    calls = [i for i in candidates if i.category in AST_CATEGORIES]
    aside = {calls[i].id for i in rng.permutation(len(calls))[: config.validation]}
    validation = [i for i in calls if i.id in aside]
    pool = _take([i for i in candidates if i.id not in aside], config.train, rng)
    pool = _limit_refusals(pool, config.refusal_share, rng)
    if not pool or not test or not validation:
        raise ValueError(
            f"{len(pool)} items to train on, {len(validation)} for validation and {len(test)} to "
            "test on are left; each needs at least one. Raise data.max_prompt_tokens or the "
            "numbers in data.train and data.test."
        )
    count = max(1, round(rounds.warm_up_fraction * len(pool)))
    first = set(rng.permutation(len(pool))[:count].tolist())
    warm_up = [item for i, item in enumerate(pool) if i in first]
    return Parts(tuple(pool), tuple(warm_up), tuple(validation), tuple(test), split.dropped)


def _split(config: ItemsConfig, num_tokens, cache) -> Split:
    names = list(dict.fromkeys((*config.train, *config.test)))
    items = load(names, cache=cache)
    limits = {}
    if num_tokens is not None:
        limits = {"num_tokens": num_tokens, "max_tokens": config.max_prompt_tokens}
    if config.protocol == "by_function":
        return split_by_function(
            items, held_out_fraction=config.held_out_fraction, seed=config.seed, **limits
        )
    return split_by_category(items, train=config.train, held_out=config.test, **limits)


def _take(items: Sequence[Item], counts: dict[str, int], rng: np.random.Generator) -> list[Item]:
    """Up to so many of each category (0: all), in the order of the items."""
    out: set[str] = set()
    for category, count in counts.items():
        own = [item.id for item in items if item.category == category]
        order = rng.permutation(len(own))
        out.update(own[i] for i in order[: count or None])
    return [item for item in items if item.id in out]


def _limit_refusals(items: list[Item], share: float, rng: np.random.Generator) -> list[Item]:
    calls = [item for item in items if item.category in AST_CATEGORIES]
    refusals = [item for item in items if item.category not in AST_CATEGORIES]
    most = min(len(refusals), math.floor(share * len(calls) + 0.5))
    kept = {refusals[i].id for i in rng.permutation(len(refusals))[:most]}
    return [i for i in items if i.category in AST_CATEGORIES or i.id in kept]


def _count(items: Sequence[Item]) -> dict[str, int]:
    names = dict.fromkeys(item.category for item in items)
    return {name: sum(item.category == name for item in items) for name in names}
