"""AUC, accuracy, RMSE, log-loss and calibration of predicted answers, on pooled rows.

Letters: N rows. All metrics are NumPy in float64 and NaN where they are not defined.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys_jax.tracing.evaluation.rows import Rows

METRICS = ("AUC", "ACC", "RMSE", "log-loss", "ECE")
HIGHER_IS_BETTER = {"AUC": True, "ACC": True, "RMSE": False, "log-loss": False, "ECE": False}
NUM_BINS = 10
# The float32 numbers next to 0 and 1: a certain and wrong prediction costs 16.6, not infinity.
_SMALLEST = 2.0**-24


def auc(response, probability) -> float:
    """Area under the ROC curve; tied predictions count one half.

    response: 0/1 [N]; probability: float [N], any monotone score. NaN with one class only.
    Source: Mann-Whitney statistic, as sklearn.metrics.roc_auc_score.
    """
    r = np.asarray(response, np.float64)
    order, starts = sort_scores(probability)
    right = np.add.reduceat(r[order], starts) if r.size else r
    wrong = np.add.reduceat(1.0 - r[order], starts) if r.size else r
    return auc_of_groups(right, wrong)


def sort_scores(probability) -> tuple[np.ndarray, np.ndarray]:
    """Order [N] by ascending score, and where each group of equal scores begins in it."""
    p = np.asarray(probability)
    order = np.argsort(p, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(p[order]) > 0)) if p.size else np.zeros(0, int)
    return order, starts


def auc_of_groups(right, wrong) -> float:
    """AUC from the weights of right and wrong answers at each distinct score, ascending."""
    below = np.cumsum(wrong) - 0.5 * wrong
    pairs = right.sum() * wrong.sum()
    return float((right * below).sum() / pairs) if pairs > 0 else float("nan")


def row_losses(rows: Rows) -> dict[str, np.ndarray]:
    """Terms [N] whose means are ACC, squared RMSE ('MSE') and log-loss (nats).

    A prediction of .5 or more says 'right'. Probabilities within 2**-24 of 0 and 1 are clipped
    there for the log-loss.
    """
    p, r = rows.probability.astype(np.float64), rows.response.astype(np.float64)
    q = np.clip(p, _SMALLEST, 1.0 - _SMALLEST)
    return {
        "ACC": ((p >= 0.5) == (r > 0.5)).astype(np.float64),
        "MSE": (p - r) ** 2,
        "log-loss": -np.where(r > 0.5, np.log(q), np.log1p(-q)),
    }


def bin_of(probability, num_bins: int = NUM_BINS) -> np.ndarray:
    """Bin int [N] of equal width on [0, 1], closed on the right (the first on both sides)."""
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    return np.searchsorted(edges[1:-1], np.asarray(probability, np.float64))


@dataclasses.dataclass(frozen=True)
class Reliability:
    """What a reliability plot shows, [bins]; NaN in empty bins.

    predicted: mean prediction. observed: share of right answers. count: rows.
    """

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over rows of |predicted - observed| of their bin."""
        total = self.count.sum()
        gap = np.abs(self.predicted - self.observed)
        return float(np.nansum(gap * self.count) / total) if total else float("nan")


def reliability(rows: Rows, num_bins: int = NUM_BINS) -> Reliability:
    """Calibration in bins of equal width.

    Raises ValueError for fewer than one bin.
    Source: Guo et al. 2017, section 2; bins as sklearn.calibration.calibration_curve.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} must be at least 1.")
    bins = bin_of(rows.probability, num_bins)
    count = np.bincount(bins, minlength=num_bins)
    means = [
        np.divide(
            np.bincount(bins, column.astype(np.float64), num_bins), count,
            out=np.full(num_bins, np.nan), where=count > 0,
        )
        for column in (rows.probability, rows.response)
    ]  # fmt: skip
    return Reliability(*means, count)


def point_metrics(rows: Rows, num_bins: int = NUM_BINS) -> dict[str, float]:
    """Every one of METRICS on all rows pooled, without intervals; NaN on no rows."""
    if not len(rows):
        return dict.fromkeys(METRICS, float("nan"))
    terms = {name: float(values.mean()) for name, values in row_losses(rows).items()}
    return {
        "AUC": auc(rows.response, rows.probability),
        "ACC": terms["ACC"],
        "RMSE": float(np.sqrt(terms["MSE"])),
        "log-loss": terms["log-loss"],
        "ECE": reliability(rows, num_bins).ece,
    }
