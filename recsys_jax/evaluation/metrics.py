"""Ranking metrics from 1-based ranks, kept per user; catalogue and popularity statistics.

Letters: U users, T targets, k list length, R = I + 1 rows of a table indexed by item id.
Everything here is NumPy on the host: ranks are a few bytes per user.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

DEFAULT_KS = (1, 5, 10, 50)
OFFICIAL_RANK_LIMIT = 2500


def apply_rank_limit(ranks, limit: int | None):
    """Ranks beyond `limit` become limit + 1, as in the released FuXi / HSTU evaluation (2500)."""
    ranks = np.asarray(ranks)
    if limit is None:
        return ranks
    if limit < 1:
        raise ValueError(f"rank_limit={limit} must be at least 1 (official: 2500) or None.")
    return np.minimum(ranks, limit + 1)


def rank_metrics(
    ranks, ks: Iterable[int] = DEFAULT_KS, *, rank_limit: int | None = None
) -> dict[str, np.ndarray]:
    """NDCG@K, HR@K, Recall@K, MRR@K and MRR of users with one target each.

    NDCG@K = 1 / log2(rank + 1), HR@K = 1, MRR@K = 1 / rank where rank <= K, else 0; MRR has no
    cut-off. With one target Recall@K is HR@K; it stands under both names.

    Args:
      ranks: int [U], 1 = best.
      ks: cut-offs.
      rank_limit: see `apply_rank_limit`; changes MRR only (unless a K exceeds it).
    Returns:
      name -> float64 [U]; means over users are the reported figures.
    Raises:
      ValueError: a rank below 1 (0 = unknown target: drop those users first), a K below 1.
    Source: FuXi-alpha section 4.1.2 / released eval.py (spec section 3).
    """
    ranks = apply_rank_limit(ranks, rank_limit)
    if ranks.ndim != 1:
        raise ValueError(
            f"ranks must be one number per user; got shape {ranks.shape}. For several targets per "
            "user use multi_target_metrics."
        )
    if ranks.size and ranks.min() < 1:
        raise ValueError(
            f"Ranks start at 1, got {ranks.min()}; users whose target is unknown (rank 0) have no "
            "metrics and must be left out."
        )
    reciprocal = 1.0 / ranks.astype(np.float64)
    gain = 1.0 / np.log2(ranks.astype(np.float64) + 1.0)
    out: dict[str, np.ndarray] = {}
    for k in check_ks(ks):
        hit = ranks <= k
        out[f"NDCG@{k}"] = np.where(hit, gain, 0.0)
        out[f"HR@{k}"] = out[f"Recall@{k}"] = hit.astype(np.float64)
        out[f"MRR@{k}"] = np.where(hit, reciprocal, 0.0)
    out["MRR"] = reciprocal
    return out


def multi_target_metrics(ranks, ks: Iterable[int] = DEFAULT_KS) -> dict[str, np.ndarray]:
    """Recall@K, Precision@K, HR@K, NDCG@K, MRR@K of users with several targets.

    Recall@K = targets in the list / targets; NDCG@K divides the binary DCG by that of the ideal
    list (min(K, targets) hits in front); MRR@K takes the best target.

    Args:
      ranks: int [U, T], 0 = no target (ragged users are padded with 0).
    Returns:
      name -> float64 [U].
    Raises:
      ValueError: a user without targets, two targets on one rank within a list of a user.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 2:
        raise ValueError(f"ranks must be [users, targets] padded with 0; got shape {ranks.shape}.")
    given = ranks > 0
    number = given.sum(1)
    if ranks.shape[0] and number.min(initial=1) == 0:
        raise ValueError(
            f"User at row {int(np.argmin(number))} has no target; leave such users out."
        )
    far = np.iinfo(np.int64).max
    ordered = np.sort(np.where(given, ranks.astype(np.int64), far), axis=1)
    out: dict[str, np.ndarray] = {}
    for k in check_ks(ks):
        hit = ordered <= k
        if ((ordered[:, 1:] == ordered[:, :-1]) & hit[:, 1:]).any():
            raise ValueError(f"Two targets of one user share a rank <= {k}; ranks are distinct.")
        gains = np.where(hit, 1.0 / np.log2(np.where(hit, ordered, 1) + 1.0), 0.0).sum(1)
        ideal = np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))
        out[f"NDCG@{k}"] = gains / ideal[np.minimum(number, k) - 1]
        out[f"Recall@{k}"] = hit.sum(1) / number
        out[f"Precision@{k}"] = hit.sum(1) / k
        out[f"HR@{k}"] = hit.any(1).astype(np.float64)
        out[f"MRR@{k}"] = np.where(hit[:, 0], 1.0 / ordered[:, 0], 0.0)
    return out


def ranks_from_topk(topk_items, targets) -> np.ndarray:
    """Positions (1-based) of targets in recommendation lists.

    Args:
      topk_items: int [U, k], best first, 0 = empty place.
      targets: int [U, T], 0 = no target.
    Returns:
      int64 [U, T]: the position, k + 1 where a target is not in the list, 0 where there is none.
      (Several targets outside the list share k + 1: cut-offs must be <= k.)
    """
    topk_items, targets = np.asarray(topk_items), np.asarray(targets)
    if topk_items.ndim != 2 or targets.ndim != 2 or topk_items.shape[0] != targets.shape[0]:
        raise ValueError(
            "topk_items must be [U, k] and targets [U, T] with the same U; got "
            f"{topk_items.shape} and {targets.shape}."
        )
    k = topk_items.shape[1]
    out = np.empty(targets.shape, np.int64)
    for column in range(targets.shape[1]):  # T is small; [U, T, k] at once might not be.
        same = topk_items == targets[:, column, None]
        out[:, column] = np.where(same.any(1), same.argmax(1) + 1, k + 1)
    return np.where(targets > 0, out, 0)


def check_ks(ks: Iterable[int]) -> Sequence[int]:
    """Sorted distinct cut-offs; ValueError for anything below 1."""
    ks = sorted({int(k) for k in ks})
    if not ks or ks[0] < 1:
        raise ValueError(f"Cut-offs must be positive integers, got {ks} (--config.evaluation.ks).")
    return ks


def recommendation_counts(topk_items, num_items: int) -> np.ndarray:
    """How often each item is recommended: int64 [num_items + 1], entry 0 is 0."""
    counts = np.bincount(np.asarray(topk_items).reshape(-1), minlength=num_items + 1)
    if counts.size > num_items + 1:
        raise ValueError(f"An item id above num_items={num_items} was recommended.")
    counts = counts.astype(np.int64)
    counts[0] = 0
    return counts


def coverage(counts) -> float:
    """Share of the catalogue recommended at least once; counts int [R] from recommendation_counts.

    1 means that every item is in somebody's list.
    """
    counts = np.asarray(counts)[1:]
    return float((counts > 0).mean()) if counts.size else 0.0


def gini(counts) -> float:
    """Gini index of exposure over the catalogue: 0 = all items equally often, near 1 = one item.

    counts: [R], entry 0 (padding) ignored. NaN when nothing was recommended.
    """
    x = np.sort(np.asarray(counts, np.float64)[1:])
    total = x.sum()
    if not total:
        return float("nan")
    n = x.size
    return float((2.0 * np.arange(1, n + 1) - n - 1.0) @ x / (n * total))


def popularity_percentile(popularity) -> np.ndarray:
    """Percentile of each item by popularity, float64 [R] in (0, 1]; ties share their mean.

    popularity: counts of training events per item, [R], entry 0 ignored (result 0 there).
    """
    pop = np.asarray(popularity, np.float64)[1:]
    _, inverse, number = np.unique(pop, return_inverse=True, return_counts=True)
    last = np.cumsum(number)
    mean_rank = last - (number - 1) / 2.0
    return np.concatenate([[0.0], mean_rank[inverse] / max(pop.size, 1)])


def mean_over_lists(values, items) -> np.ndarray:
    """Mean of a per-item value over each row of item ids, 0 = empty place; NaN for empty rows.

    values float [R]; items int [U, k] -> float64 [U].
    """
    items = np.asarray(items)
    present = items > 0
    number = present.sum(1)
    total = np.where(present, np.asarray(values, np.float64)[items], 0.0).sum(1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def mean_of_defined(values: np.ndarray) -> float:
    """Mean of the defined values; NaN without a warning where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def mean_by_user(users: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of the defined values of each user, in the order of the sorted `users`."""
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    defined = ~np.isnan(values)
    total = np.add.reduceat(np.where(defined, values, 0.0), starts)
    count = np.add.reduceat(defined.astype(np.float64), starts)
    return np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
