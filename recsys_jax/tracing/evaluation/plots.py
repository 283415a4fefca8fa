"""Plots of a tracing report: metrics with intervals over horizon or data size, and reliability."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from recsys_jax.evaluation.intervals import SeedSummary
from recsys_jax.evaluation.plots import label_ends, model_styles, styled_figure
from recsys_jax.tracing.evaluation.marginals import Marginals
from recsys_jax.tracing.evaluation.metrics import Reliability

Styles = Mapping[str, tuple[str, object]]


def plot_intervals(
    path,
    lines: Mapping[str, tuple[Sequence[float], Sequence[SeedSummary]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    ticks: Sequence[str] | None = None,
    chance: float | None = None,
    logarithmic: bool = False,
    styles: Styles | None = None,
) -> pathlib.Path | None:
    """Lines with confidence bars, named at their ends.

    Args:
      lines: model -> (x, one summary per x); undefined values are left out.
      ticks: labels of x = 0, 1, ... instead of numbers. chance: a grey line at this value.
    Returns:
      the path, or None (and no file) when there is nothing to draw.
    """
    shown = {}
    for name, (x, summaries) in lines.items():
        points = [
            (a, s.interval) for a, s in zip(x, summaries, strict=True)
            if np.isfinite(s.interval.mean)
        ]  # fmt: skip
        if points:
            shown[name] = points
    if not shown:
        return None
    styles = styles or model_styles(list(shown))
    with styled_figure(path, figsize=(7.6, 4.4)) as figure:
        axes = figure.subplots()
        if chance is not None:
            axes.axhline(chance, color="#AAAAAA", linewidth=1.0, linestyle=(0, (2, 2)))
        ends = []
        for i, (name, points) in enumerate(shown.items()):
            colour, dash = styles[name]
            x = np.array([a for a, _ in points], float)
            mean, low, high = (
                np.array([getattr(interval, field) for _, interval in points])
                for field in ("mean", "low", "high")
            )
            if ticks is not None:  # Models share their x: points and bars stand side by side.
                x = x + 0.03 * (i - (len(shown) - 1) / 2)
            axes.plot(x, mean, color=colour, linestyle=dash, linewidth=1.8, marker="o",
                      markersize=4)  # fmt: skip
            axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.5)
            ends.append((name, colour, x[-1], mean[-1]))
        if logarithmic:
            axes.set_xscale("log")
            places = sorted({a for points in shown.values() for a, _ in points})
            axes.set_xticks(places, [f"{a:,g}" for a in places])
            axes.minorticks_off()
        if ticks is not None:
            axes.set_xticks(range(len(ticks)), ticks)
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        label_ends(axes, ends)
    return pathlib.Path(path)


def plot_reliability(
    path, curves: Mapping[str, Reliability], *, title: str, styles: Styles | None = None
) -> pathlib.Path | None:
    """Share of right answers over mean prediction, one line per model, and where rows lie.

    Returns the path, or None when no model has a row.
    """
    curves = {name: c for name, c in curves.items() if c.count.sum()}
    if not curves:
        return None
    styles = styles or model_styles(list(curves))
    with styled_figure(path, figsize=(6.4, 6.0)) as figure:
        axes, below = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": [3.2, 1.0]}
        )  # fmt: skip
        axes.plot([0, 1], [0, 1], color="#AAAAAA", linewidth=1.0, linestyle=(0, (2, 2)))
        for name, curve in curves.items():
            colour, dash = styles[name]
            full = curve.count > 0
            axes.plot(
                curve.predicted[full], curve.observed[full], color=colour, linestyle=dash,
                marker="o", markersize=4, label=f"{name} (ECE {curve.ece:.3f})",
            )  # fmt: skip
            edges = np.linspace(0.0, 1.0, curve.count.size + 1)
            below.stairs(curve.count / curve.count.sum(), edges, color=colour, linestyle=dash)
        axes.set_title(title)
        axes.set_ylabel("share of right answers")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.legend(frameon=False, fontsize=8.5, loc="upper left")
        below.set_xlabel("predicted probability of a right answer")
        below.set_ylabel("share of steps")
    return pathlib.Path(path)


def _common(curve: Marginals) -> Marginals:
    kept = curve.count >= 0.05 * curve.count.max()
    return Marginals(*(getattr(curve, f.name)[kept] for f in dataclasses.fields(curve)))


def plot_positions(
    path, curves: Mapping[str, Marginals], *, title: str, styles: Styles | None = None
) -> pathlib.Path | None:
    """Mean prediction by step for each model, with the real share of right answers in grey.

    Steps that fewer than a twentieth as many students reached as the commonest are left out: they
    show noise. Returns the path, or None when there are fewer than two steps.
    """
    curves = {name: _common(c) for name, c in curves.items() if c.group.size > 1}
    curves = {name: c for name, c in curves.items() if c.group.size > 1}
    if not curves:
        return None
    styles = styles or model_styles(list(curves))
    real = next(iter(curves.values()))
    with styled_figure(path, figsize=(7.6, 4.2)) as figure:
        axes = figure.subplots()
        axes.plot(real.group + 1, real.true, color="#999999", linewidth=1.2)
        ends = [("real", "#777777", real.group[-1] + 1, real.true[-1])]
        for name, curve in curves.items():
            colour, dash = styles[name]
            axes.plot(curve.group + 1, curve.predicted, color=colour, linestyle=dash, linewidth=1.6)
            ends.append((name, colour, curve.group[-1] + 1, curve.predicted[-1]))
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel("rate of right answers")
        axes.set_ylim(0, 1)
        label_ends(axes, ends)
    return pathlib.Path(path)
