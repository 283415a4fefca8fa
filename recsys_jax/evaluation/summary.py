"""Results of several models brought together: means, intervals, spread over seeds, paired tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recsys_jax.evaluation.evaluator import EvaluationResult
from recsys_jax.evaluation.intervals import (
    Comparison,
    Interval,
    SeedSummary,
    aggregate_seeds,
    compare_models,
)

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


class ReportError(ValueError):
    """The entries of a report do not fit together; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One model of a report.

    name: shown in tables and plots; unique.
    results: one EvaluationResult per training seed, all on the same users.
    curves: 'train/loss', 'eval/NDCG@10', ... -> (steps [n], values [n]); see `read_curves`.
    parameters: number of trained parameters. train_seconds: wall-clock training time of a seed.
    note: shown under the table, for example the configuration.
    validation: best validation value of the primary metric, one per seed; empty without one.
    """

    name: str
    results: Sequence[EvaluationResult]
    curves: Curves = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    train_seconds: float | None = None
    note: str = ""
    validation: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """Figures of one model: per-user metrics with intervals, catalogue metrics as plain means."""

    entry: ModelEntry
    metrics: dict[str, SeedSummary]
    catalogue: dict[str, float]

    @property
    def name(self) -> str:
        return self.entry.name

    def value(self, metric: str) -> float:
        """Mean of a metric of either kind; NaN if it was not measured."""
        if metric in self.metrics:
            return self.metrics[metric].interval.mean
        return self.catalogue.get(metric, float("nan"))

    def interval(self, metric: str) -> Interval | None:
        return self.metrics[metric].interval if metric in self.metrics else None


def summarise(
    entries: Sequence[ModelEntry], *, level: float = 0.95, seed: int = 0
) -> list[ModelSummary]:
    """Summaries in the given order.

    Raises:
      ReportError: no entry, a name twice, an entry without result, users that differ.
    """
    if not entries:
        raise ReportError("A report needs at least one model.")
    names = [entry.name for entry in entries]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ReportError(f"Model names must be unique; {sorted(twice)} occur more than once.")
    for entry in entries:
        if not entry.results:
            raise ReportError(f"Model {entry.name!r} has no evaluation result.")
        for result in entry.results:
            if not np.array_equal(result.users, entries[0].results[0].users):
                raise ReportError(
                    f"Model {entry.name!r} was evaluated on other users than {names[0]!r}; "
                    "evaluate all models and seeds on the same split."
                )
    return [_summary(entry, level, seed) for entry in entries]


def _summary(entry, level, seed):
    first = entry.results[0]
    metrics = {}
    for name in first.per_user:
        columns = [result.per_user[name] for result in entry.results]
        if all(np.isnan(column).all() for column in columns):
            continue
        metrics[name] = aggregate_seeds(columns, level=level, seed=seed)
    catalogue = {
        name: float(np.mean([result.metrics[name] for result in entry.results]))
        for name in first.metrics
        if name not in first.per_user
    }
    return ModelSummary(entry, metrics, catalogue)


def paired_comparisons(
    summaries: Sequence[ModelSummary], metric: str, *, level: float = 0.95, seed: int = 0
) -> list[Comparison]:
    """All pairs, better model first, Holm-corrected; per-user values are means over the seeds."""
    ordered = sorted(summaries, key=lambda s: -s.value(metric))
    values = {s.name: s.metrics[metric].per_user for s in ordered if metric in s.metrics}
    if len(values) < 2:
        return []
    return compare_models(values, metric=metric, level=level, seed=seed)


def read_curves(file) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Curves of a run from its metrics.jsonl: 'kind/name' -> (steps int64 [n], values float64 [n]).

    Values that are not numbers are skipped, non-finite ones become NaN. A missing file gives {}.
    """
    from pangu_jax.training.metrics_writer import read_metrics

    points: dict[str, list[tuple[int, float]]] = {}
    for record in read_metrics(file):
        for name, value in record.get("values", {}).items():
            try:
                number = float(value)
            except (TypeError, ValueError):
                continue
            points.setdefault(f"{record.get('kind')}/{name}", []).append((record["step"], number))
    out = {}
    for name, pairs in points.items():
        steps, values = np.array([p[0] for p in pairs], np.int64), np.array([p[1] for p in pairs])
        out[name] = (steps, np.where(np.isfinite(values), values, np.nan))
    return out


def as_json(summaries: Sequence[ModelSummary], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything of the summaries that a program may want to read; JSON has no NaN: null."""

    def number(x):
        return None if x is None or not np.isfinite(x) else float(x)

    models = []
    for s in summaries:
        metrics = {
            name: {
                "mean": number(m.interval.mean),
                "low": number(m.interval.low),
                "high": number(m.interval.high),
                "std_over_seeds": number(m.std_over_seeds),
                "seed_means": [number(x) for x in m.seed_means],
            }
            for name, m in s.metrics.items()
        }
        models.append(
            {
                "model": s.name,
                "seeds": len(s.entry.results),
                "users": s.entry.results[0].num_users,
                "validation": [number(x) for x in s.entry.validation],
                "parameters": s.entry.parameters,
                "train_seconds": number(s.entry.train_seconds),
                "evaluation_seconds": number(np.mean([r.seconds for r in s.entry.results])),
                "note": s.entry.note,
                "metrics": metrics,
                "catalogue": {name: number(x) for name, x in s.catalogue.items()},
            }
        )
    tests = [
        {
            "metric": c.metric,
            "a": c.a,
            "b": c.b,
            "difference": c.difference.mean,
            "low": c.difference.low,
            "high": c.difference.high,
            "p_value": c.p_value,
            "p_adjusted_holm": c.p_adjusted,
        }
        for c in comparisons
    ]
    return {"models": models, "paired_tests": tests}
