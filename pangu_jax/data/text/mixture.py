"""Which domains a phase reads, how often, and which of their documents first."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable

import numpy as np

from pangu_jax.data.text.errors import TextDataError, choose_from

# Pangu Ultra, section 3.1.1, Table 2: share of the tokens of each phase.
PANGU_ULTRA_WEIGHTS: dict[str, dict[str, float]] = {
    "general": {
        "english": 0.54, "chinese": 0.13, "multilingual": 0.08, "instruction": 0.02,
        "math": 0.06, "code": 0.17,
    },
    "reasoning": {
        "english": 0.14, "chinese": 0.06, "multilingual": 0.04, "instruction": 0.11,
        "math": 0.28, "code": 0.37,
    },
    "annealing": {
        "english": 0.21, "chinese": 0.20, "multilingual": 0.03, "instruction": 0.20,
        "math": 0.18, "code": 0.18,
    },
}  # fmt: skip
_PERIOD = 10_000


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Shares of the tokens of one phase.

    Attributes:
      weights: domain -> share of the tokens; shares sum to 1, a share of 0 leaves a domain out.
      quality_power: a document is read max(quality, quality_floor) ** quality_power times as often
        as one of quality 1; 0 reads every document once an epoch. The paper says that sampling
        probability rises with the score; the form is reconstructed.
      quality_floor: scores below it count as it, so that no document is lost for good.
      curriculum: domains read from simple to complex (by their difficulty) instead of shuffled;
        the paper does so for its reasoning data.
      curriculum_noise: how far a document may move from its place, as a share of the domain.
      difficulty_range: quantiles of difficulty between which the curriculum domains' documents
        are read; phases that take 0-0.3, 0.3-0.6, ... spread one curriculum over all of them.
    """

    weights: dict[str, float]
    quality_power: float = 0.0
    quality_floor: float = 0.05
    curriculum: tuple[str, ...] = ()
    curriculum_noise: float = 0.05
    difficulty_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        for domain, weight in self.weights.items():
            if not weight >= 0:
                raise TextDataError(f"The weight of domain {domain!r} is {weight}, below 0.")
        total = sum(self.weights.values())
        if abs(total - 1) > 1e-6:
            raise TextDataError(
                f"The weights sum to {total:.6g}, not to 1: {self.weights}. Change them, or use "
                "Mixture.restricted_to, which scales what is left."
            )
        for domain in self.curriculum:
            if domain not in self.weights:
                raise choose_from("curriculum domain", domain, self.weights, "Give it a weight.")
        if self.quality_power < 0 or not 0 < self.quality_floor <= 1:
            raise TextDataError(
                "quality_power must be at least 0 and quality_floor in (0, 1], got "
                f"{self.quality_power} and {self.quality_floor}."
            )
        low, high = self.difficulty_range
        if not 0 <= low < high <= 1:
            raise TextDataError(f"difficulty_range must rise within 0..1, got ({low}, {high}).")

    def restricted_to(self, domains: Iterable[str]) -> Mixture:
        """The mixture of the domains that are there, their weights scaled to sum to 1.

        Raises:
          TextDataError: none of them has a weight.
        """
        there = set(domains)
        kept = {d: w for d, w in self.weights.items() if d in there and w > 0}
        if not kept:
            raise TextDataError(
                f"None of the domains {sorted(there)} has a weight; weights name "
                f"{sorted(self.weights)}."
            )
        total = sum(kept.values())
        return dataclasses.replace(
            self,
            weights={d: w / total for d, w in kept.items()},
            curriculum=tuple(d for d in self.curriculum if d in kept),
        )


class RowSchedule:
    """Which domain row k comes from: even interleaving with a period of 10,000 rows.

    Shares are met to 1/10,000 over a period, and every domain has at least one row in it. Usable
    as the selection map of `grain.MapDataset.select_from_datasets`.
    """

    def __init__(self, weights: Iterable[float], length: int):
        shares = np.asarray(list(weights), np.float64)
        counts = np.maximum(1, np.floor(shares * _PERIOD + 1e-6).astype(np.int64))
        while (missing := _PERIOD - int(counts.sum())) != 0:
            gap = shares * _PERIOD - counts
            counts[np.argmax(gap) if missing > 0 else np.argmin(gap)] += np.sign(missing)
        # The j-th of a domain's n rows belongs at (j + 1/2) / n of the period.
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
        owner = np.repeat(np.arange(len(counts)), counts)
        self._pattern = owner[np.lexsort((owner, places))]
        self._counts = counts
        before = np.zeros((len(counts), _PERIOD + 1), np.int64)
        for d in range(len(counts)):
            before[d, 1:] = np.cumsum(self._pattern == d)
        self._before = before
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> tuple[int, int]:
        period, place = divmod(int(row), _PERIOD)
        domain = int(self._pattern[place])
        return domain, int(period * self._counts[domain] + self._before[domain, place])

    def rows_before(self, row: int) -> np.ndarray:
        """Rows of each domain among the first `row` rows, int64 [domains]."""
        period, place = divmod(int(row), _PERIOD)
        return period * self._counts + self._before[:, place]


def selected_documents(difficulty: np.ndarray, mixture: Mixture, domain: str) -> np.ndarray:
    """Places of the documents that the mixture reads of a domain; all outside the curriculum.

    Raises:
      TextDataError: the difficulty range holds no document.
    """
    count = len(difficulty)
    if domain not in mixture.curriculum or mixture.difficulty_range == (0.0, 1.0):
        return np.arange(count)
    low, high = mixture.difficulty_range
    order = np.argsort(difficulty, kind="stable")
    kept = np.sort(order[round(low * count) : round(high * count)])
    if not len(kept):
        raise TextDataError(
            f"difficulty_range=({low}, {high}) holds none of the {count} documents of "
            f"{domain!r}; widen it."
        )
    return kept


def epoch_order(
    quality: np.ndarray,
    difficulty: np.ndarray,
    mixture: Mixture,
    domain: str,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Documents of one epoch in order, int64 [M] for M documents; depends on its arguments only.

    With quality_power > 0 a document with r times the mean weight comes floor(r) or floor(r) + 1
    times, r on average over epochs (systematic resampling).
    """
    rng = np.random.default_rng([seed, zlib.crc32(domain.encode()), epoch])
    count = len(quality)
    documents = np.arange(count)
    if mixture.quality_power > 0:
        weight = np.maximum(quality.astype(np.float64), mixture.quality_floor)
        weight **= mixture.quality_power
        # Shuffled first, so that which documents are rounded up has nothing to do with order.
        documents = rng.permutation(count)
        ends = np.cumsum(weight[documents]) * (count / weight.sum())
        ends[-1] = count
        copies = np.diff(np.floor(ends + rng.random()).astype(np.int64), prepend=0)
        documents = np.repeat(documents, copies)
    if domain not in mixture.curriculum:
        return rng.permutation(documents)
    rank = np.empty(count)
    rank[np.argsort(difficulty, kind="stable")] = np.arange(count) / count
    moved = rank[documents] + mixture.curriculum_noise * rng.uniform(-1, 1, len(documents))
    return documents[np.argsort(moved, kind="stable")]
