"""The report of knowledge tracing: report.md with plots, and report.json."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from recsys_jax.evaluation.plots import model_styles
from recsys_jax.evaluation.report import markdown_table
from recsys_jax.tracing.evaluation import plots
from recsys_jax.tracing.evaluation.metrics import HIGHER_IS_BETTER, METRICS
from recsys_jax.tracing.evaluation.summary import (
    ProtocolTable,
    SparsityPoint,
    TracingEntry,
    as_json,
    few_seeds,
    tables,
)

__all__ = ["SparsityPoint", "TracingEntry", "TracingReport", "write_report"]

PLOTTED = ("single-step", "open loop, threshold", "prefix 0.5, threshold")
_MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True)
class TracingReport:
    """What was written: the markdown file and the tables of it."""

    path: pathlib.Path
    tables: list[ProtocolTable]
    sparsity: list[tuple[int, list[ProtocolTable]]]


def write_report(
    path,
    title: str,
    entries: Sequence[TracingEntry],
    *,
    description: str = "",
    sparsity: Sequence[SparsityPoint] = (),
    plotted: Sequence[str] = PLOTTED,
    notes: Sequence[str] = (),
    licence: str = "",
    citation: str = "",
    level: float = 0.95,
) -> TracingReport:
    """Write report.md, report.json and PNGs into the folder `path`.

    Args:
      path: folder, made if needed; older files of the same names are replaced.
      entries: models and floors, all on the same students.
      sparsity: models trained on fewer students; points of the sparsity curve.
      plotted: names of the protocols with plots; those nobody was evaluated under are left out.
      notes: one paragraph each. licence, citation: of the data, shown at the end.
    Raises:
      ReportError: see `summary.tables`.
    """
    folder = pathlib.Path(path)
    found = tables(entries, level=level)
    points = sorted(((p.students, tables(p.entries, level=level)) for p in sparsity),
                    key=lambda pair: pair[0])  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    names = [e.name for e in entries] + [e.name for p in sparsity for e in p.entries]
    styles = model_styles(list(dict.fromkeys(names)))
    few = few_seeds([*entries, *(e for p in sparsity for e in p.entries)])
    payload = {
        "title": title,
        "description": description,
        "level": level,
        "fewer_than_three_seeds": list(dict.fromkeys(few)),
        "protocols": as_json(found),
        "sparsity": [{"students": n, "protocols": as_json(t)} for n, t in points],
        "notes": list(notes),
        "data_licence": licence,
        "data_citation": citation,
    }
    text = json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")

    parts = [f"# {title}", description, _how_to_read(level, entries), _warning(few)]
    for table in found:
        parts.append(_section(folder, table, styles, table.protocol.name in plotted))
    parts += [_answers(found), _sparsity_section(folder, points, plotted, styles)]
    parts += [_notes(entries, notes), _data(licence, citation)]
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    return TracingReport(folder / "report.md", found, points)


def _how_to_read(level, entries):
    seeds = max(len(e.results) for e in entries)
    text = (
        "All steps of all students are pooled. In brackets: "
        f"{100 * level:g} % bootstrap interval over students (of the mean over seeds). "
    )
    if seeds > 1:
        text += f"± is the standard deviation over up to {seeds} training seeds. "
    return text + (
        "Floors, in italics, know training rates only and have no seeds; what a model adds is its "
        "distance from the best of them. Best model in bold."
    )


def _warning(few):
    if not few:
        return ""
    names = ", ".join(dict.fromkeys(few))
    return f"**Fewer than three seeds: {names}.** Small differences of these are not established."


def _section(folder, table: ProtocolTable, styles, with_plots):
    parts = [
        f"## {table.protocol.name[0].upper()}{table.protocol.name[1:]}",
        f"{table.num_students:,} students, {table.num_rows:,} scored steps.",
        _metric_table(table),
        _pairs(table),
        _horizon_table(table),
    ]
    if with_plots:
        parts += _plots(folder, table, styles)
    return "\n\n".join(part for part in parts if part)


def _metric_table(table: ProtocolTable):
    best = {}
    for metric, higher in HIGHER_IS_BETTER.items():
        values = {
            f.entry.name: f.metrics[metric].interval.mean
            for f in table.models
            if not f.entry.floor and np.isfinite(f.metrics[metric].interval.mean)
        }
        best[metric] = (max if higher else min)(values, key=values.get) if values else None
    margins = {c.a: c for c in table.against_floor}
    floor = table.against_floor[0].b if table.against_floor else ""
    rows = []
    for f in table.models:
        cells = [_name(f)]
        for metric in METRICS:
            summary = f.metrics[metric]
            cells.append(_cell(summary, best[metric] == f.entry.name))
        if margins:
            cells.append(_margin(margins.get(f.entry.name)))
        rows.append(cells)
    header = ["model", *METRICS]
    if margins:
        header.append(f"AUC {_MINUS} {floor} (p, Holm)")
    return markdown_table(header, rows, "l" + "r" * (len(header) - 1))


def _name(figures):
    return f"*{figures.entry.name}*" if figures.entry.floor else figures.entry.name


def _cell(summary, best=False):
    interval = summary.interval
    if not np.isfinite(interval.mean):
        return "–"
    text = f"**{interval.mean:.4f}**" if best else f"{interval.mean:.4f}"
    if np.isfinite(summary.std_over_seeds):
        text += f" ±{summary.std_over_seeds:.4f}"
    if np.isfinite(interval.low):
        text += f" [{interval.low:.4f}, {interval.high:.4f}]"
    return text


def _margin(test):
    if test is None or not np.isfinite(test.difference.mean):
        return "–"
    d = test.difference
    return f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] ({test.p_adjusted:.3f})"


def _pairs(table: ProtocolTable):
    tests = [c for c in table.pairs if np.isfinite(c.difference.mean)]
    if not tests:
        return ""
    rows = [
        (
            f"{c.a} {_MINUS} {c.b}",
            f"{c.difference.mean:+.4f}",
            f"[{c.difference.low:+.4f}, {c.difference.high:+.4f}]",
            f"{c.p_value:.4f}",
            f"{c.p_adjusted:.4f}",
        )
        for c in tests
    ]
    head = markdown_table(["AUC, pair", "difference", "interval", "p", "p (Holm)"], rows, "lrrrr")
    return (
        head + "\n\nPaired over students: both models on the same resamples; seeds by their mean."
    )


def _horizon_table(table: ProtocolTable):
    buckets = list(dict.fromkeys(b for f in table.models for b in f.buckets))
    if len(buckets) < 2:
        return ""
    rows = [
        [_name(f), *(_cell(f.buckets[b]["AUC"]) if b in f.buckets else "–" for b in buckets)]
        for f in table.models
    ]
    what = "steps after the prefix" if table.protocol.prefix else "steps from the beginning"
    header = [f"AUC, {what}", *(f"{a}-{b}" for a, b in buckets)]
    return markdown_table(header, rows, "l" + "r" * len(buckets))


def _plots(folder, table: ProtocolTable, styles):
    name = table.protocol.name
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    buckets = list(dict.fromkeys(b for f in table.models for b in f.buckets))
    lines = {}
    for f in table.models:
        have = [i for i, b in enumerate(buckets) if b in f.buckets]
        lines[f.entry.name] = have, [f.buckets[buckets[i]]["AUC"] for i in have]
    images = []
    if len(buckets) > 1:
        images.append((
            "AUC by horizon",
            plots.plot_intervals(
                folder / f"horizon_{slug}.png", lines, title=f"AUC by horizon, {name}",
                xlabel="steps after the prefix" if table.protocol.prefix else "step", ylabel="AUC",
                ticks=[f"{a}-{b}" for a, b in buckets], chance=0.5, styles=styles,
            ),
        ))  # fmt: skip
    images.append((
        "Share of right answers by step",
        plots.plot_positions(
            folder / f"positions_{slug}.png", {f.entry.name: f.positions for f in table.models},
            title=f"Right answers by step, {name}", styles=styles,
        ),
    ))  # fmt: skip
    images.append((
        "Reliability",
        plots.plot_reliability(
            folder / f"reliability_{slug}.png",
            {f.entry.name: f.reliability for f in table.models},
            title=f"Reliability, {name}", styles=styles,
        ),
    ))  # fmt: skip
    return [f"![{what}, {name}]({p.name})" for what, p in images if p is not None]


def _answers(found: Sequence[ProtocolTable]):
    rows = []
    for table in found:
        for f in table.models:
            c = f.collapse
            shown = ("predicted_rate", "answered_rate", "question_gap", "position_gap")
            rows.append([
                table.protocol.name, _name(f), f"{c['true_rate']:.3f}",
                *(f"{c[k]:.3f}" for k in shown),
                "–" if np.isnan(c["student_spread"]) else f"{c['student_spread']:.2f}",
                f"{c['collapsed_seeds']} of {len(f.entry.results)}",
            ])  # fmt: skip
    header = ["protocol", "model", "real rate", "mean prediction", "share ≥ .5"]
    header += ["gap per question", "gap per position", "student spread", "collapsed"]
    table = markdown_table(header, rows, "llrrrrrrr")
    return (
        f"## Answers beside real ones\n\n{table}\n\nRates of right answers. Gaps: mean of "
        f"|predicted {_MINUS} real| rate over questions and positions, weighted by steps. "
        "Student spread: standard deviation over students of the mean prediction, over that of "
        "the real rate. "
        "Collapsed: at least 99 % of thresholded answers are alike though the real ones are not."
    )


def _sparsity_section(folder, points, plotted, styles):
    if not points:
        return ""
    parts = ["## Fewer training students"]
    names = list(dict.fromkeys(t.protocol.name for _, found in points for t in found))
    for name in names:
        lines: dict[str, tuple[list, list]] = {}
        for students, found in points:
            for table in found:
                if table.protocol.name == name:
                    for f in table.models:
                        x, y = lines.setdefault(f.entry.name, ([], []))
                        x.append(students)
                        y.append(f.metrics["AUC"])
        header = [f"AUC, {name}", *(f"{students:,} students" for students, _ in points)]
        rows = []
        for model, (x, y) in lines.items():
            cells = dict(zip(x, y, strict=True))
            rows.append([model, *(_cell(cells[n]) if n in cells else "–" for n, _ in points)])
        parts.append(markdown_table(header, rows, "l" + "r" * len(points)))
        if name in plotted and len(points) > 1:
            slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
            image = plots.plot_intervals(
                folder / f"sparsity_{slug}.png", lines, title=f"AUC by training students, {name}",
                xlabel="training students", ylabel="AUC", logarithmic=True, styles=styles,
            )  # fmt: skip
            if image is not None:
                parts.append(f"![Sparsity curve, {name}]({image.name})")
    return "\n\n".join(parts)


def _notes(entries, notes):
    lines = [f"* **{e.name}**: {e.note}" for e in entries if e.note]
    lines += [f"* {note}" for note in notes]
    return "## Notes\n\n" + "\n".join(lines) if lines else ""


def _data(licence, citation):
    parts = [f"Licence and terms: {licence}"] if licence else []
    parts += [f"Please cite:\n\n```\n{citation.strip()}\n```"] if citation else []
    return "## Data\n\n" + "\n\n".join(parts) if parts else ""
