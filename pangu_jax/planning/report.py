"""The report of a plan: tables on the terminal, report.md, plan.json and timelines."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pangu_jax.config.resolve import to_dict
from pangu_jax.parallel.pipeline_timeline import plot_timeline
from pangu_jax.parallel.topology import Topology
from pangu_jax.planning.config import PlanConfig, PlanPhase
from pangu_jax.planning.cost import Prediction
from pangu_jax.planning.pipeline import pipeline_timeline
from pangu_jax.planning.tables import Table

_LIMITS = (
    "Modelled, not measured: times follow from work, data-sheet figures and the efficiencies of "
    "`pangu_jax/planning/execution.py`. Host, input, stragglers and the compiler's own temporaries "
    "are left out."
)


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as plain numbers, for JSON."""
    collectives = [
        dataclasses.asdict(c) | {"sent": c.sent, "total_seconds": c.total_seconds}
        for c in prediction.collectives
    ]
    return {
        "layout": to_dict(prediction.layout),
        "seq_len": prediction.seq_len,
        "batch_rows": prediction.layout.batch_rows,
        "seconds": prediction.seconds,
        "parts": prediction.parts,
        "tokens": prediction.tokens,
        "tokens_per_second_per_device": prediction.tokens_per_second_per_device,
        "mfu": prediction.mfu,
        "hfu": prediction.hfu,
        "memory": prediction.memory.parts | {"total": prediction.memory.total},
        "fits": prediction.fits,
        "collectives": collectives,
        "stage_forward_seconds": list(prediction.forward),
        "stage_backward_seconds": list(prediction.backward),
    }


def plot_phases(
    folder: pathlib.Path, phases: Sequence[PlanPhase], predictions: Mapping[str, Prediction],
    config: PlanConfig,
) -> list[pathlib.Path]:  # fmt: skip
    """Writes timeline_<phase>.png for every phase with a pipeline and returns their paths."""
    written = []
    for phase in phases:
        found = predictions[phase.name]
        if phase.layout.pipe == 1:
            continue
        hop = next(
            c.seconds for c in found.collectives
            if c.axis == "pipe" and c.kind == "collective-permute"
        )  # fmt: skip
        timeline = pipeline_timeline(
            phase.layout, found.forward, found.backward, hop, config.execution
        )
        path = folder / f"timeline_{phase.name}.png"
        plot_timeline(
            timeline, path,
            title=f"{phase.name}: {phase.layout.pipe} ranks, {phase.layout.virtual_stages} chunks "
            f"each, {phase.layout.microbatches} micro-batches; idle {timeline.bubble_share:.1%}",
        )  # fmt: skip
        written.append(path)
    return written


def write_report(
    folder: pathlib.Path, config: PlanConfig, topology: Topology, phases: Sequence[PlanPhase],
    predictions: Mapping[str, Prediction], tables: Sequence[Table], extra: Mapping[str, Any],
) -> pathlib.Path:  # fmt: skip
    """Writes report.md, plan.json and the timelines into `folder`; the report's path.

    extra: further records for plan.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = plot_phases(folder, phases, predictions, config)
    record = {
        "config": to_dict(config),
        "topology": to_dict(topology),
        "phases": {name: prediction_record(found) for name, found in predictions.items()},
        **extra,
    }
    (folder / "plan.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    model = config.model
    parts = [
        f"# Plan: {model.num_parameters() / 1e9:,.2f} B parameters on {topology.name}",
        f"{topology.devices:,} x {topology.device_kind}, {topology.nodes:,} nodes of "
        f"{topology.devices_per_node}; {topology.memory_bytes / 1e9:.0f} GB at "
        f"{topology.memory_bandwidth / 1e12:.2f} TB/s; {topology.intra_links}; "
        f"{topology.inter_links}. Peak {topology.peak(model.dtype) / 1e12:,.0f} TFLOP/s "
        f"({model.dtype}).",
        _LIMITS,
    ]
    if topology.assumptions:
        parts.append("Assumed of the topology:\n\n" + _bullets(topology.assumptions))
    notes = [f"{phase.name}: {note}" for phase in phases for note in phase.notes]
    if notes:
        parts.append("Of the layouts:\n\n" + _bullets(notes))
    parts += [table.markdown() for table in tables]
    parts += [
        f"![Timeline of {path.stem.removeprefix('timeline_')}]({path.name})" for path in plots
    ]
    report = folder / "report.md"
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return report


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
