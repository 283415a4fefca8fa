"""Training and held-out items that share no function and no question.

BFCL repeats itself: 96 of the 200 `multiple` questions are `simple_python` questions word for word,
and most function names occur in several categories. A split by item would test what was trained on.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from agents_jax.tools.bfcl.data import Item

Names = Literal["offered", "called"]


@dataclasses.dataclass(frozen=True)
class Split:
    """train and held_out keep the order of the items given; dropped counts those left out, by
    reason.
    """

    train: tuple[Item, ...]
    held_out: tuple[Item, ...]
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(training, held-out) number of items by category."""
        counts = [collections.Counter(i.category for i in part) for part in self._parts]
        names = dict.fromkeys(item.category for part in self._parts for item in part)
        return {name: (counts[0][name], counts[1][name]) for name in names}

    @property
    def _parts(self) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
        return self.train, self.held_out


def split_by_function(
    items: Sequence[Item],
    *,
    held_out_fraction: float = 0.2,
    seed: int = 0,
    names: Names = "offered",
    num_tokens: Callable[[Item], int] | None = None,
    max_tokens: int | None = None,
) -> Split:
    """Splits so that no function of the held-out items is seen in training, nor a question.

    Items joined by a function name or a question form groups; groups are drawn into the held-out
    part as long as no category exceeds its share, so large groups stay in training.

    Args:
      held_out_fraction: share of each category to hold out, at most.
      seed: of the draw; the same items and seed give the same split on every machine.
      names: 'offered' joins by every function a model may choose from; 'called' only by those of
        the gold answer (a held-out function may then have been seen in training as a distractor).
      num_tokens, max_tokens: items with more tokens are dropped before the split.

    Raises:
      ValueError: a fraction outside (0, 1), an unknown `names`, or one of the last two arguments
        alone.
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction={held_out_fraction} is not between 0 and 1.")
    if names not in ("offered", "called"):
        raise ValueError(f"names={names!r} is unknown; allowed: offered, called.")
    items, dropped = _short_enough(items, num_tokens, max_tokens)
    share = {
        category: round(held_out_fraction * count)
        for category, count in collections.Counter(item.category for item in items).items()
    }
    groups = _groups(items, names)
    held: set[int] = set()
    taken: collections.Counter = collections.Counter()
    for index in np.random.default_rng(seed).permutation(len(groups)):
        counts = collections.Counter(items[i].category for i in groups[index])
        if all(taken[category] + count <= share[category] for category, count in counts.items()):
            taken.update(counts)
            held.update(groups[index])
    return Split(
        tuple(item for i, item in enumerate(items) if i not in held),
        tuple(item for i, item in enumerate(items) if i in held),
        dropped,
    )


def split_by_category(
    items: Sequence[Item],
    *,
    train: Iterable[str],
    held_out: Iterable[str],
    num_tokens: Callable[[Item], int] | None = None,
    max_tokens: int | None = None,
) -> Split:
    """Trains on some categories and holds others out, whole.

    Training items that offer a function which a held-out item offers, or ask its question, are
    dropped; so are items of categories that are not named, and those longer than max_tokens.

    Raises:
      ValueError: a category on both sides, or one of the last two arguments alone.
    """
    train, held_out = set(train), set(held_out)
    if train & held_out:
        raise ValueError(f"categories {sorted(train & held_out)} are in both parts of the split.")
    items, dropped = _short_enough(items, num_tokens, max_tokens)
    test = [item for item in items if item.category in held_out]
    tested = {key for item in test for key in _keys(item, "offered")}
    kept, shared, other = [], 0, 0
    for item in items:
        if item.category in train:
            if tested.isdisjoint(_keys(item, "offered")):
                kept.append(item)
            else:
                shared += 1
        elif item.category not in held_out:
            other += 1
    dropped = dropped | {"shares a function or question": shared, "category not named": other}
    return Split(tuple(kept), tuple(test), {k: v for k, v in dropped.items() if v})


def _short_enough(
    items: Sequence[Item], num_tokens: Callable[[Item], int] | None, max_tokens: int | None
) -> tuple[list[Item], dict[str, int]]:
    if (num_tokens is None) != (max_tokens is None):
        raise ValueError("num_tokens and max_tokens are given together or not at all.")
    if num_tokens is None or max_tokens is None:
        return list(items), {}
    kept = [item for item in items if num_tokens(item) <= max_tokens]
    too_long = len(items) - len(kept)
    return kept, {f"more than {max_tokens} tokens": too_long} if too_long else {}


def _keys(item: Item, names: Names) -> list[tuple[str, str]]:
    """What must not stand on both sides: function names and the question's words."""
    functions = item.offered_names if names == "offered" else item.called_names
    question = " ".join(m["content"] for m in item.messages if m["role"] != "system")
    question = re.sub(r"\W+", " ", question.lower()).strip()
    return [*(("function", name) for name in functions), ("question", question)]


def _groups(items: Sequence[Item], names: Names) -> list[list[int]]:
    """Indices of items joined, directly or through others, by a key; in order of first item."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key):
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for item in items:
        first, *rest = _keys(item, names)
        for key in (first, *rest):
            parent[root(key)] = root(first)
    groups: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(root(_keys(item, names)[0]), []).append(index)
    return list(groups.values())
