"""How sure a metric is: bootstrap intervals over users, paired tests, many seeds.

U users, S seeds. All resampling is of per-user values that take few distinct numbers (a rank metric
at cut-off K has K + 1), so a resample is drawn as the *counts* of the distinct values: the same
distribution as drawing users, at a cost that does not grow with U.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

_CHUNK = 2**22  # Numbers held at once while resampling.
METHODS = ("bca", "percentile", "basic")


@dataclasses.dataclass(frozen=True)
class Interval:
    """Mean with a confidence interval. low <= high; all three in the unit of the metric."""

    mean: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap_means(values, *, num_resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of bootstrap resamples of users.

    values float [U] -> float64 [num_resamples]. Memory is bounded whatever U is.
    Raises ValueError for empty or non-finite values.
    """
    values = _clean(values)
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    n = values.size
    out = np.empty(num_resamples)
    if distinct.size * 8 <= n or n <= 64:
        chunk = max(_CHUNK // distinct.size, 1)
        for begin in range(0, num_resamples, chunk):
            size = min(chunk, num_resamples - begin)
            out[begin : begin + size] = rng.multinomial(n, counts / n, size) @ distinct / n
    else:
        chunk = max(_CHUNK // n, 1)
        for begin in range(0, num_resamples, chunk):
            size = min(chunk, num_resamples - begin)
            out[begin : begin + size] = values[rng.integers(0, n, (size, n))].mean(1)
    return out


def mean_interval(
    values,
    *,
    level: float = 0.95,
    method: str = "bca",
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap confidence interval of the mean over users.

    Args:
      values: float [U]; NaN (not defined for a user) is left out.
      level: confidence level in (0, 1).
      method: 'bca' (bias-corrected and accelerated; the default of scipy), 'percentile', 'basic'.
    Returns:
      Interval; low = high = mean when all values are equal.
    Raises:
      ValueError: unknown method, level outside (0, 1), no or infinite values.
    Source: Efron and Tibshirani 1993, chapters 13-14; checked against scipy.stats.bootstrap.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; allowed are {', '.join(METHODS)}.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level} must lie between 0 and 1 (for example 0.95).")
    values = np.asarray(values, np.float64)
    values = _clean(values[~np.isnan(values)])
    mean = float(values.mean())
    if values.min() == values.max():
        return Interval(mean, mean, mean, level)
    means = bootstrap_means(values, num_resamples=num_resamples, seed=seed)
    tails = np.array([0.5 - level / 2.0, 0.5 + level / 2.0])
    if method == "bca":
        tails = _bca_tails(values, means, mean, tails)
    low, high = np.quantile(means, tails)
    if method == "basic":
        low, high = 2.0 * mean - high, 2.0 * mean - low
    return Interval(mean, float(low), float(high), level)


def _bca_tails(values, means, mean, tails):
    """Corrected tail probabilities; the jackknife of a mean has a closed form."""
    # A share of exactly 0 or 1 (very few users) would send the correction to infinity.
    below = ((means < mean).sum() + 0.5 * (means == mean).sum()) / means.size
    below = np.clip(below, 0.5 / means.size, 1.0 - 0.5 / means.size)
    bias = stats.norm.ppf(below)
    deviation = values - mean
    deviation /= np.abs(deviation).max()  # of no effect but that powers of tiny ones do not vanish
    acceleration = (deviation**3).sum() / (6.0 * (deviation**2).sum() ** 1.5)
    shifted = bias + stats.norm.ppf(tails)
    return stats.norm.cdf(bias + shifted / (1.0 - acceleration * shifted))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired comparison of two models on one metric over the same users.

    difference: mean(a) - mean(b) with its bootstrap interval.
    p_value: two-sided sign-flip permutation test.
    p_adjusted: after Holm's correction over the family it was tested in (= p_value alone).
    """

    a: str
    b: str
    metric: str
    difference: Interval
    p_value: float
    p_adjusted: float

    def significant(self, alpha: float = 0.05) -> bool:
        """Whether the family-wise corrected p-value is below alpha."""
        return self.p_adjusted < alpha


def paired_test(
    a,
    b,
    *,
    names: tuple[str, str] = ("a", "b"),
    metric: str = "",
    level: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Paired sign-flip permutation test and bootstrap interval of mean(a - b).

    Under the null hypothesis the two models are exchangeable per user, so every difference may
    change its sign. Users with |difference| alike flip as one binomial draw. The p-value is
    (1 + extreme) / (1 + num_resamples) and so never 0.

    Args:
      a, b: float [U], the same users in the same order; a NaN on either side drops the user.
    Raises:
      ValueError: different lengths, no users.
    Source: Good 2005; scipy.stats.permutation_test(permutation_type='samples').
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"A paired test needs the same users for both models; {names[0]} has {a.shape} values "
            f"and {names[1]} has {b.shape}. Evaluate both on the same split."
        )
    difference = _clean((a - b)[~np.isnan(a - b)])
    # Rounding must not split what is one value up to the last bits.
    size = np.round(np.abs(difference), 12)
    size, counts = np.unique(size[size > 0], return_counts=True)
    observed = abs(np.round(difference, 12).sum())
    rng = np.random.default_rng(seed)
    extreme, chunk = 0, max(_CHUNK // max(size.size, 1), 1)
    for begin in range(0, num_resamples, chunk):
        draws = min(chunk, num_resamples - begin)
        signs = 2.0 * rng.binomial(counts, 0.5, (draws, size.size)) - counts
        # Sums of the same numbers in another order: ties up to rounding count as extreme.
        extreme += int((np.abs(signs @ size) >= observed * (1 - 1e-9) - 1e-9).sum())
    p_value = (1.0 + extreme) / (1.0 + num_resamples)
    interval = mean_interval(difference, level=level, seed=seed + 1)
    return Comparison(*names, metric, interval, p_value, p_value)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values, in the given order (family-wise error rate)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    steps = p[order] * (p.size - np.arange(p.size))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def compare_models(
    per_user: Mapping[str, np.ndarray],
    *,
    metric: str = "",
    users: Mapping[str, np.ndarray] | None = None,
    reference: str | None = None,
    level: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> list[Comparison]:
    """Paired tests between models, Holm-corrected over all of them.

    Args:
      per_user: model -> float [U] of one metric.
      users: model -> int [U]; when given they must be equal for all models.
      reference: compare only this model with the others; None compares all pairs.
    Raises:
      ValueError: users differ, unknown reference.
    """
    names = list(per_user)
    if users is not None:
        for name in names[1:]:
            if not np.array_equal(users[names[0]], users[name]):
                raise ValueError(
                    f"Models {names[0]!r} and {name!r} were evaluated on different users; paired "
                    "tests need the same split and the same user filter."
                )
    if reference is not None and reference not in per_user:
        raise ValueError(f"reference={reference!r} is not among the models {names}.")
    pairs = (
        itertools.combinations(names, 2)
        if reference is None
        else [(reference, name) for name in names if name != reference]
    )
    tests = [
        paired_test(
            per_user[a], per_user[b], names=(a, b), metric=metric, level=level,
            num_resamples=num_resamples, seed=seed,
        )
        for a, b in pairs
    ]  # fmt: skip
    adjusted = holm([t.p_value for t in tests])
    return [
        dataclasses.replace(t, p_adjusted=float(p)) for t, p in zip(tests, adjusted, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """One metric of one model over several training seeds.

    interval: mean over users and seeds; the interval says how far other *users* would move it.
    std_over_seeds: sample standard deviation of the S per-seed means (NaN for one seed): how far
      another *training run* would move it. The two are reported apart, never added.
    per_user: float64 [U], mean over the seeds, for paired tests between models.
    """

    interval: Interval
    std_over_seeds: float
    seed_means: np.ndarray
    per_user: np.ndarray


def aggregate_seeds(per_seed: Sequence[np.ndarray], **options) -> SeedSummary:
    """Summary of S arrays [U] of the same users; options as `mean_interval`.

    Raises ValueError when the arrays differ in length or none is given.
    """
    shapes = {np.shape(x) for x in per_seed}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(
            "Every seed must be evaluated on the same users; got arrays of shapes "
            f"{sorted(shapes)}."
        )
    values = np.stack([np.asarray(x, np.float64) for x in per_seed])
    # A value that is not defined (NaN) is so for a user whatever the seed.
    seed_means = np.array([row[~np.isnan(row)].mean() for row in values])
    spread = float(seed_means.std(ddof=1)) if len(values) > 1 else float("nan")
    per_user = values.mean(0)
    return SeedSummary(mean_interval(per_user, **options), spread, seed_means, per_user)


def _clean(values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"Expected one value per user for at least one user; got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("Per-user values must be finite.")
    return values
