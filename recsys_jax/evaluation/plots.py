"""PNG plots of a report: training curves and model comparison. matplotlib is imported on use."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from recsys_jax.evaluation.intervals import SeedSummary

# Okabe and Ito 2008: told apart with every common form of colour blindness. Yellow is left out
# (too pale for a line on white); beyond seven models dashes tell the second round apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)))
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.labelcolor": "#444444",
    "figure.dpi": 100,
    "savefig.dpi": 150,
}


def model_styles(names: Sequence[str]) -> dict[str, tuple[str, object]]:
    """model -> (colour, dash), the same in every plot of a report."""
    return {
        name: (COLOURS[i % len(COLOURS)], DASHES[(i // len(COLOURS)) % len(DASHES)])
        for i, name in enumerate(names)
    }


@contextlib.contextmanager
def styled_figure(path, *args, **kwargs):
    """A styled figure that is saved as PNG; the global state of matplotlib stays as it is."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(*args, layout="constrained", **kwargs)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, facecolor="white", bbox_inches="tight", pad_inches=0.12)


def plot_curves(
    path,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    title: str,
    ylabel: str,
    styles: Mapping[str, tuple[str, object]] | None = None,
    mark: str | None = None,
    xlabel: str = "training step",
) -> pathlib.Path | None:
    """Lines of several models in one plot, named at their ends.

    Args:
      curves: model -> (steps [n], values [n]); NaN breaks a line; models without points are left
        out.
      mark: 'max' or 'min' puts a ring on each line's best point.
    Returns:
      the path, or None (and no file) when there is nothing to draw.
    """
    curves = {
        name: (np.asarray(steps), np.asarray(values, float))
        for name, (steps, values) in curves.items()
        if len(steps) and np.isfinite(np.asarray(values, float)).any()
    }
    if not curves:
        return None
    styles = styles or model_styles(list(curves))
    with styled_figure(path, figsize=(7.6, 4.2)) as figure:
        axes = figure.subplots()
        ends = []
        for name, (steps, values) in curves.items():
            colour, dash = styles[name]
            few = len(steps) <= 60
            axes.plot(
                steps, values, color=colour, linestyle=dash, linewidth=1.8,
                marker="o" if few and len(steps) <= 25 else None, markersize=3.5,
            )  # fmt: skip
            good = np.flatnonzero(np.isfinite(values))
            if mark:
                best = good[(np.argmax if mark == "max" else np.argmin)(values[good])]
                axes.plot(
                    steps[best], values[best], "o", markersize=9, markerfacecolor="none",
                    markeredgecolor=colour, markeredgewidth=1.5,
                )  # fmt: skip
            ends.append((name, colour, steps[good[-1]], values[good[-1]]))
        axes.set_title(title)
        axes.set_xlabel(xlabel + (f" (ring: {mark}imum)" if mark else ""))
        axes.set_ylabel(ylabel)
        axes.margins(x=0.02)
        _limit_outliers(axes, curves)
        label_ends(axes, ends)
    return pathlib.Path(path)


def _limit_outliers(axes, curves):
    """Start-up spikes must not flatten the rest: the axis ends a little above the 98th centile."""
    values = np.concatenate([v[np.isfinite(v)] for _, v in curves.values()])
    low, high, top = values.min(), np.quantile(values, 0.98), values.max()
    if values.size > 50 and top - low > 3 * (high - low) > 0:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))


def label_ends(axes, ends):
    """Names right of the last points, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.055 * (high - low)
    ends = sorted(ends, key=lambda e: e[3])
    wanted = np.clip([e[3] for e in ends], low, high)
    places = wanted.copy()
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    overshoot = places[-1] - high
    if overshoot > 0:  # Push the stack down again, from the top.
        places[-1] = high
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    for (name, colour, x, _), y0, y in zip(ends, wanted, places, strict=True):
        right = axes.get_xlim()[1]
        axes.annotate(
            name, xy=(x, y0), xycoords="data",
            xytext=(right + 0.02 * (right - axes.get_xlim()[0]), y), textcoords="data",
            color=colour, va="center", ha="left", fontsize=9, fontweight="bold",
            annotation_clip=False,
            arrowprops=dict(arrowstyle="-", color=colour, linewidth=0.6, alpha=0.5, shrinkA=1,
                            shrinkB=2),
        )  # fmt: skip


def plot_comparison(
    path,
    summaries: Mapping[str, Mapping[str, SeedSummary]],
    metrics: Sequence[str],
    *,
    title: str,
    styles: Mapping[str, tuple[str, object]] | None = None,
) -> pathlib.Path | None:
    """Dot plot: one panel per metric, one line per model, bars are confidence intervals.

    The models stand in the order of the first metric, best on top. Small grey dots are single
    seeds where there are several.

    Args:
      summaries: model -> metric -> SeedSummary.
    Returns:
      the path, or None when no model has any of the metrics.
    """
    metrics = [m for m in metrics if any(m in values for values in summaries.values())]
    if not metrics:
        return None
    styles = styles or model_styles(list(summaries))
    names = [n for n in summaries if any(m in summaries[n] for m in metrics)]
    names.sort(key=lambda n: _mean_of(summaries[n], metrics[0]))
    first = next(s for n in names for m, s in summaries[n].items() if m in metrics)
    percent = f"{100 * first.interval.level:g} %"
    width = 1.6 + 2.6 * len(metrics)
    with styled_figure(path, figsize=(max(width, 5.5), 1.5 + 0.42 * len(names))) as figure:
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            for y, name in enumerate(names):
                if metric in summaries[name]:
                    _dot(axes, y, summaries[name][metric], styles[name][0])
            axes.set_title(metric)
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(-0.6, len(names) - 0.3)
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0, labelsize=10)
            axes.locator_params(axis="x", nbins=4)
            intervals = [summaries[n][metric].interval for n in names if metric in summaries[n]]
            low = min(0.0, *(i.low for i in intervals))
            high = max(0.0, *(i.high for i in intervals))
            room = 0.1 * (high - low) or 0.1
            # Zero is always in sight: half a point must not look like a factor of two.
            axes.set_xlim(low - room if low < 0 else 0.0, high + room)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        seeds = any(len(s.seed_means) > 1 for n in names for s in summaries[n].values())
        note = f"bars: {percent} confidence interval over users"
        figure.supxlabel(
            note + ("; grey dots: single seeds" if seeds else ""), fontsize=9, color="#666666"
        )
    return pathlib.Path(path)


def _dot(axes, y, summary, colour):
    interval = summary.interval
    if len(summary.seed_means) > 1:
        axes.plot(
            summary.seed_means, np.full(len(summary.seed_means), y - 0.2), "o", markersize=3.5,
            color="#999999", markeredgewidth=0, alpha=0.8,
        )  # fmt: skip
    axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=2.2, alpha=0.75)
    axes.plot(interval.mean, y, "o", color=colour, markersize=7)
    axes.annotate(
        f"{interval.mean:.4f}", (interval.mean, y), xytext=(0, 6), textcoords="offset points",
        ha="center", va="bottom", fontsize=8.5, color="#222222",
    )  # fmt: skip


def _mean_of(values, metric):
    return values[metric].interval.mean if metric in values else -np.inf
