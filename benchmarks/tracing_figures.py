"""The figures of docs/advkt.md, drawn from the reports of runs.

    python benchmarks/tracing_figures.py --out=docs/figures --simulated=RUN/report/report.json \\
        --shares=215=RUN/report/report.json --shares=537=... --shares=2147=...

`simulated`: AUC by horizon and reliability (`advkt_horizons.svg`, `advkt_reliability.svg`).
`shares`: NUMBER=REPORT, training students and a report of a run on them; a number given twice adds
the second report's models. AUC by number (`advkt_sparsity.svg`).
"""

from __future__ import annotations

import collections
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from recsys_jax.evaluation.plots import model_styles, styled_figure  # noqa: E402

flags.DEFINE_string("out", "docs/figures", "Folder of the figures.")
flags.DEFINE_string("simulated", None, "report.json of the ways on simulated students.")
flags.DEFINE_multi_string("shares", [], "NUMBER=report.json.")
FLAGS = flags.FLAGS

NAMES = {
    "exact predictor": "exact predictor",
    "a_teacher_forced": "a: true responses",
    "b2_random_prefix": "b2: random cut",
    "b_own_samples": "b: own samples",
    "e_advkt": "e: AdvKT",
    "n_rasch_random_prefix": "n: advkt_plus",
    "rasch": "n: advkt_plus",
    "question mean": "question mean (floor)",
    "student x question": "student x question (floor)",
    "c_question_loss": "c: b and question loss",
}
"""What a model of a report is called, in the order of the legend; others are not drawn."""
_STYLES = model_styles(list(dict.fromkeys(NAMES.values())))


def main(argv):
    del argv
    folder = pathlib.Path(FLAGS.out)
    folder.mkdir(parents=True, exist_ok=True)
    if FLAGS.simulated:
        report = _read(FLAGS.simulated)
        draw_horizons(folder / "advkt_horizons.svg", report)
        draw_reliability(folder / "advkt_reliability.svg", report)
    if FLAGS.shares:
        reports = collections.defaultdict(list)
        for text in FLAGS.shares:
            number, _, path = text.partition("=")
            if not (number.isdigit() and path):
                raise app.UsageError(f"--shares={text} is not of the form NUMBER=report.json.")
            reports[int(number)].append(_read(path))
        draw_sparsity(folder / "advkt_sparsity.svg", dict(sorted(reports.items())))


def draw_horizons(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    """AUC in buckets of steps after the roll-out began, by feedback; 95 % intervals."""
    protocols = ("open loop, threshold", "open loop, expected", "prefix 0.5, expected")
    with _figure(path, figsize=(11, 3.9)) as figure:
        for axes, protocol in zip(
            figure.subplots(1, len(protocols), sharey=True), protocols, strict=True
        ):
            for name, model in _models(report, protocol):
                points = [b for b in model["horizons"] if b["metrics"]["AUC"]["mean"] is not None]
                values = [b["metrics"]["AUC"] for b in points]
                _line(axes, name, range(len(points)), values)
            labels = [f"{b['first']}-{b['last']}" for b in points]
            axes.set_xticks(range(len(labels)), labels)
            axes.set_title(protocol)
            axes.set_xlabel("step of the roll-out")
        figure.axes[0].set_ylabel("AUC")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)


def draw_reliability(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Share of right answers over the mean prediction, in ten bins."""
    protocols = ("single-step", "open loop, threshold", "prefix 0.5, threshold")
    with _figure(path, figsize=(11, 3.9)) as figure:
        for axes, protocol in zip(
            figure.subplots(1, len(protocols), sharey=True), protocols, strict=True
        ):
            axes.plot([0, 1], [0, 1], color="#AAAAAA", linewidth=1.0)
            for name, model in _models(report, protocol):
                curve = model["reliability"]
                least = 0.01 * sum(curve["count"])
                points = [
                    (p, o)
                    for p, o, n in zip(
                        curve["predicted"], curve["observed"], curve["count"], strict=True
                    )
                    if n >= least
                ]
                colour, dash = _STYLES[name]
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker="o",
                          markersize=3.5, linewidth=1.5, label=name)  # fmt: skip
            axes.set_title(protocol)
            axes.set_xlabel("predicted")
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
        figure.axes[0].set_ylabel("share of right answers")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)


def draw_sparsity(path: pathlib.Path, reports: Mapping[int, list[Mapping[str, Any]]]) -> None:
    """AUC over the number of training students; 95 % intervals over test students."""
    protocols = ("single-step", "open loop, expected", "prefix 0.5, threshold")
    with _figure(path, figsize=(11, 3.9)) as figure:
        for axes, protocol in zip(
            figure.subplots(1, len(protocols), sharey=True), protocols, strict=True
        ):
            lines = collections.defaultdict(dict)
            for number, several in reports.items():
                for report in several:
                    for name, model in _models(report, protocol):
                        lines[name][number] = model["metrics"]["AUC"]
            for name in (n for n in _STYLES if n in lines):
                _line(axes, name, list(lines[name]), list(lines[name].values()))
            axes.set_xscale("log")
            axes.set_xticks(list(reports), [f"{number:,}" for number in reports])
            axes.minorticks_off()
            axes.set_title(protocol)
            axes.set_xlabel("training students")
        figure.axes[0].set_ylabel("AUC")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)


def _line(axes, name: str, x, values) -> None:
    colour, dash = _STYLES[name]
    axes.plot(x, [v["mean"] for v in values], color=colour, linestyle=dash, marker="o",
              markersize=3.5, linewidth=1.5, label=name)  # fmt: skip
    axes.vlines(x, [v["low"] for v in values], [v["high"] for v in values], color=colour,
                linewidth=1.0, alpha=0.35)  # fmt: skip


def _models(report: Mapping[str, Any], protocol: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, results) of the models that are drawn, in the order of NAMES."""
    found = [p for p in report["protocols"] if p["protocol"] == protocol]
    if not found:
        have = ", ".join(p["protocol"] for p in report["protocols"])
        raise app.UsageError(f"A report has no protocol {protocol!r}, only {have}.")
    models = {m["model"]: m for m in found[0]["models"]}
    for name, shown in NAMES.items():
        if name in models:
            yield shown, models[name]


def _figure(path: pathlib.Path, **kwargs):
    import matplotlib

    # Letters stay text, and the same figure is the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tracing"})
    return styled_figure(path, **kwargs)


def _read(path: str) -> dict[str, Any]:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    app.run(main)
