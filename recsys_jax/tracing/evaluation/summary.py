"""Figures of several models side by side: over seeds, against the floors, in pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from recsys_jax.evaluation.intervals import Comparison, Interval, SeedSummary, holm
from recsys_jax.evaluation.summary import ReportError
from recsys_jax.tracing.evaluation.bootstrap import Scores, compare, over_seeds
from recsys_jax.tracing.evaluation.evaluator import Evaluation, ProtocolResult
from recsys_jax.tracing.evaluation.marginals import Marginals
from recsys_jax.tracing.evaluation.metrics import METRICS, Reliability
from recsys_jax.tracing.evaluation.protocols import Protocol

ENOUGH_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class TracingEntry:
    """One model of a report.

    results: one Evaluation per training seed, all on the same students. floor: whether it is one of
    `floors.make_floors`, which have no seed. note: shown under the tables.
    """

    name: str
    results: Sequence[Evaluation]
    floor: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class SparsityPoint:
    """Models trained on a part of the students, tested on the same ones as all others.

    students: number of training students. entries: as of a report.
    """

    students: int
    entries: Sequence[TracingEntry]


@dataclasses.dataclass(frozen=True)
class ModelFigures:
    """One model under one protocol.

    metrics, buckets: over seeds. reliability: of all seeds pooled. collapse: means over seeds.
    positions: of the first seed.
    """

    entry: TracingEntry
    metrics: dict[str, SeedSummary]
    buckets: dict[tuple[int, int], dict[str, SeedSummary]]
    reliability: Reliability
    collapse: dict[str, float]
    positions: Marginals


@dataclasses.dataclass(frozen=True)
class ProtocolTable:
    """All models under one protocol, models before floors, each in order of AUC.

    against_floor: AUC of each model less that of the best floor, Holm-corrected over the models.
    pairs: AUC of every pair of models, better one first, Holm-corrected over the pairs.
    """

    protocol: Protocol
    num_students: int
    num_rows: int
    models: list[ModelFigures]
    against_floor: list[Comparison]
    pairs: list[Comparison]


def tables(entries: Sequence[TracingEntry], *, level: float = 0.95) -> list[ProtocolTable]:
    """One table per protocol, in the order of the entries.

    Raises:
      ReportError: no entry, a name twice, an entry without result, seeds of one model with other
        protocols, other students, an open-loop protocol without a floor.
    """
    if not entries:
        raise ReportError("A report needs at least one model.")
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ReportError(f"Model names must be unique; {twice} occur more than once.")
    protocols: dict[str, Protocol] = {}
    for entry in entries:
        if not entry.results:
            raise ReportError(f"Model {entry.name!r} has no evaluation result.")
        if any(set(result) != set(entry.results[0]) for result in entry.results):
            raise ReportError(f"The seeds of model {entry.name!r} have different protocols.")
        protocols |= {name: r.protocol for name, r in entry.results[0].items()}
    return [_table(protocol, entries, level) for protocol in protocols.values()]


def few_seeds(entries: Sequence[TracingEntry]) -> list[str]:
    """Names of the models with fewer than three seeds."""
    return [e.name for e in entries if not e.floor and len(e.results) < ENOUGH_SEEDS]


def _table(protocol, entries, level):
    entries = [e for e in entries if protocol.name in e.results[0]]
    if protocol.open_loop and not any(e.floor for e in entries):
        raise ReportError(
            f"Protocol {protocol.name!r} has no floor: without one an open-loop figure says "
            "nothing of the model. Add entries for floors.make_floors(fit_rates(training batches))."
        )
    scores = {e.name: [r[protocol.name].overall for r in e.results] for e in entries}
    first = scores[entries[0].name][0]
    for name, runs in scores.items():
        for run in runs:
            if (run.fingerprint, run.num_rows) != (first.fingerprint, first.num_rows):
                raise ReportError(
                    f"Models {entries[0].name!r} and {name!r} were scored on different students or "
                    f"steps under {protocol.name!r}; evaluate all on one split."
                )
    figures = [_figures(e, [r[protocol.name] for r in e.results], level) for e in entries]
    figures.sort(key=lambda f: (f.entry.floor, -_auc(f)))
    models = [f.entry.name for f in figures if not f.entry.floor]
    floors = [f.entry.name for f in figures if f.entry.floor]

    def tests(pairs):
        return _corrected(
            [compare(scores[a], scores[b], "AUC", names=(a, b), level=level) for a, b in pairs]
        )

    return ProtocolTable(
        protocol,
        first.num_students,
        first.num_rows,
        figures,
        tests([(m, floors[0]) for m in models] if floors else []),
        tests([(a, b) for i, a in enumerate(models) for b in models[i + 1 :]]),
    )


def _auc(figures):
    return np.nan_to_num(figures.metrics["AUC"].interval.mean, nan=-np.inf)


def _figures(entry, results: Sequence[ProtocolResult], level):
    def summary(scores: Sequence[Scores]):
        return {metric: over_seeds(scores, metric, level) for metric in METRICS}

    collapse = [dataclasses.asdict(r.collapse) for r in results]
    return ModelFigures(
        entry,
        summary([r.overall for r in results]),
        {b: summary([r.buckets[b] for r in results]) for b in results[0].buckets},
        _pooled([r.reliability for r in results]),
        {name: float(np.mean([c[name] for c in collapse])) for name in collapse[0]}
        | {"collapsed_seeds": sum(r.collapse.collapsed for r in results)},
        results[0].positions,
    )


def _pooled(curves):
    count = sum(c.count for c in curves)
    means = [
        np.divide(
            sum(np.nan_to_num(getattr(c, name)) * c.count for c in curves), count,
            out=np.full(count.shape, np.nan), where=count > 0,
        )
        for name in ("predicted", "observed")
    ]  # fmt: skip
    return Reliability(*means, count)


def _corrected(tests: Sequence[Comparison]) -> list[Comparison]:
    defined = [t for t in tests if np.isfinite(t.p_value)]
    adjusted = iter(holm([t.p_value for t in defined]))
    return [
        dataclasses.replace(t, p_adjusted=float(next(adjusted))) if np.isfinite(t.p_value) else t
        for t in tests
    ]


def as_json(found: Sequence[ProtocolTable]) -> list[dict]:
    """Everything of the tables that a program may want to read; JSON has no NaN: null."""
    return [
        {
            "protocol": t.protocol.name,
            **dataclasses.asdict(t.protocol),
            "students": t.num_students,
            "rows": t.num_rows,
            "models": [_model_json(f) for f in t.models],
            "against_best_floor": [_test_json(c) for c in t.against_floor],
            "paired_tests": [_test_json(c) for c in t.pairs],
        }
        for t in found
    ]


def _number(x):
    return float(x) if np.isfinite(x) else None


def _metrics_json(metrics: Mapping[str, SeedSummary]):
    return {
        name: _interval_json(s.interval)
        | {
            "std_over_seeds": _number(s.std_over_seeds),
            "seed_values": [_number(x) for x in s.seed_means],
        }
        for name, s in metrics.items()
    }


def _interval_json(i: Interval):
    return {"mean": _number(i.mean), "low": _number(i.low), "high": _number(i.high)}


def _model_json(f: ModelFigures):
    return {
        "model": f.entry.name,
        "floor": f.entry.floor,
        "seeds": len(f.entry.results),
        "note": f.entry.note,
        "metrics": _metrics_json(f.metrics),
        "horizons": [
            {"first": a, "last": b, "metrics": _metrics_json(m)} for (a, b), m in f.buckets.items()
        ],
        "reliability": {
            "predicted": [_number(x) for x in f.reliability.predicted],
            "observed": [_number(x) for x in f.reliability.observed],
            "count": f.reliability.count.tolist(),
        },
        "answers": {name: _number(x) for name, x in f.collapse.items()},
        "positions_of_first_seed": {
            field.name: [_number(x) for x in getattr(f.positions, field.name)]
            for field in dataclasses.fields(f.positions)
        },
    }


def _test_json(c: Comparison):
    return {
        "metric": c.metric,
        "a": c.a,
        "b": c.b,
        "difference": _interval_json(c.difference),
        "p_value": _number(c.p_value),
        "p_adjusted_holm": _number(c.p_adjusted),
    }
