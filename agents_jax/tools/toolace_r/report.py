"""What a run found, as data: scores of every system, refinement, rounds, paired comparisons."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from agents_jax.tools.toolace_r.config import MAIN, ToolAceRConfig
from agents_jax.tools.toolace_r.evaluation import Point, System, refinement_summary
from agents_jax.tools.toolace_r.items import Parts
from agents_jax.tools.toolace_r.paired import compare
from agents_jax.tools.toolace_r.rounds import WARM_UP, ArmResult, Round
from agents_jax.tools.toolace_r.selection import transitions
from pangu_jax.config import to_dict

GIVEN = "model"
"""Name of a model that is measured as it is."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that was measured. points: by name, in the order in which they came about.

    seconds: of each stage.
    """

    config: ToolAceRConfig
    parts: Parts
    points: dict[str, Point]
    arms: dict[str, ArmResult]
    seconds: dict[str, float]

    def systems(self) -> dict[str, System]:
        """Every way of answering by name: 'warm_up', 'warm_up + adaptive', ..."""
        out = {}
        for name, point in self.points.items():
            for way, system in point.systems(self.config).items():
                out[name if way == "plain" else f"{name} + {way}"] = system
        return out


def build_report(findings: Findings) -> dict[str, Any]:
    """The contents of report.json."""
    import jax

    systems = findings.systems()
    return {
        "config": to_dict(findings.config),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "seconds": {k: round(v, 1) for k, v in findings.seconds.items()},
        "items": {"sizes": findings.parts.sizes(), "dropped": findings.parts.dropped},
        "systems": {name: system.to_dict() for name, system in systems.items()},
        "rounds": {arm: _rounds(result) for arm, result in findings.arms.items()},
        "refinement": {
            (name if way == "adaptive" else f"{name}, {way}"): refinement_summary(point.items, runs)
            for name, point in findings.points.items()
            for way, runs in _refinements(point)
        },
        "vote": _vote(findings),
        "comparisons": comparisons(systems, _pairs(findings)),
    }


def comparisons(
    systems: Mapping[str, System], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Paired comparisons on the items that both systems answered: with calls, and without.

    Pairs of which one system is absent are left out.
    """
    out = []
    for first, second in pairs:
        if first not in systems or second not in systems:
            continue
        for kind in ("calls", "irrelevance"):
            one = systems[first].correct(calls=kind == "calls")
            other = systems[second].correct(calls=kind == "calls")
            common = [name for name in one if name in other]
            if common:
                found = compare([one[n] for n in common], [other[n] for n in common])
                out.append({"first": first, "second": second, "items": kind} | found.to_dict())
    return out


def _pairs(findings: Findings) -> list[tuple[str, str]]:
    """What the design compares, settled before any run."""
    pairs = [("zero_shot", "few_shot"), ("few_shot", WARM_UP), (GIVEN, "few_shot")]
    before = WARM_UP
    lasts = {arm: _point(arm, r.rounds[-1]) for arm, r in findings.arms.items() if r.rounds}
    main = lasts.get(MAIN)
    if main is not None:
        for round_ in findings.arms[MAIN].rounds:
            pairs.append((before, _point(MAIN, round_)))
            before = _point(MAIN, round_)
        if len(findings.arms[MAIN].rounds) > 1:
            pairs.append((WARM_UP, main))
    pairs += [("few_shot", "zero_shot + forced"), ("zero_shot + forced", WARM_UP)]
    if main is not None:  # what of tuning is more than the format?
        pairs += [("zero_shot + forced", main), ("zero_shot + forced", f"{main} + constrained")]
    for last in (GIVEN, *lasts.values()):
        pairs.append((last, f"{last} + adaptive"))
        pairs.append((last, f"{last} + constrained"))
        pairs.append((last, f"{last} + forced"))
        for steps in findings.config.evaluation.fixed_steps:
            pairs.append((f"{last} + fixed {steps}", f"{last} + adaptive"))
        pairs.append((f"{last} + vote", f"{last} + adaptive"))
        pairs.append((last, f"{last} + vote"))
    pairs.append((WARM_UP, f"{WARM_UP} + adaptive"))  # untrained refinement
    if main is not None:
        for arm, last in lasts.items():
            if arm != MAIN:
                pairs += [(last, main), (f"{last} + adaptive", f"{main} + adaptive")]
    return pairs


def _point(arm: str, round_: Round) -> str:
    return f"{arm}/round_{round_.number}"


def _refinements(point: Point):
    if point.refined is not None:
        yield "adaptive", point.refined
    for steps, runs in point.fixed.items():
        yield f"fixed {steps}", runs


def _vote(findings: Findings) -> dict[str, Any]:
    """By point: how many samples cost as much as refinement, and accuracy and cost by number."""
    out = {}
    for name, point in findings.points.items():
        if point.samples is None:
            continue
        systems = [
            point.vote(n, findings.config) for n in range(1, len(point.samples[0].texts) + 1)
        ]
        scores = [system.to_dict() for system in systems]
        out[name] = {
            "equal_cost": findings.config.evaluation.equal_cost,
            "samples_at_equal_cost": point.equal_samples(findings.config),
            "calls_accuracy": [s["total"].get("calls", {}).get("rate") for s in scores],
            "irrelevance": [s["total"].get("irrelevance", {}).get("rate") for s in scores],
            "per_query": [s["per_query"] for s in scores],
        }
    return out


def _rounds(result: ArmResult) -> dict[str, Any]:
    """Sizes, histograms, overlaps and transitions of an arm's selections."""
    out: list[dict[str, Any]] = []
    selections = [r.selection for r in result.rounds] + [result.last_selection]
    for index, selection in enumerate(selections):
        if index >= len(result.rounds) and selection is None:
            continue
        record: dict[str, Any] = {"number": index + 1}
        if selection is not None:
            record |= {k: v for k, v in selection.to_dict().items() if k not in ("ids", "solved")}
            k = selection.samples
            record["pass_at_1"] = sum(selection.solved.values()) / (k * len(selection.solved))
            record[f"pass_at_{k}"] = sum(c > 0 for c in selection.solved.values()) / len(
                selection.solved
            )
            before = selections[index - 1] if index else None
            if before is not None:
                record["overlap_with_last"] = len(set(selection.ids) & set(before.ids))
                record["transitions"] = transitions(before.solved, selection.solved, k)
        if index < len(result.rounds):
            record["examples"] = result.rounds[index].corpus.counts()
        else:
            record["tuned"] = False
        out.append(record)
    return {"rounds": out, "ended": result.ended}
