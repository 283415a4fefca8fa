"""Line plots of a report: one figure, one style, no global state."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

Line = np.ndarray  # [2, n]: x and y

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_STYLES = ["-", "--", ":"]  # Over the colours again with the next one.
_FEW = 8  # Lines that a legend inside the axes can name.
_COLOURS = ["#2f6db5", "#c8553d", "#3c8d5a", "#8a5fb0", "#b08d2f", "#5b6770", "#d08fb1", "#4fa3a5"]


def plot_lines(
    path: pathlib.Path, title: str, xlabel: str, lines: Sequence[tuple[str, Line]], *,
    log: bool = False, borders: Sequence[float] = (),
) -> None:  # fmt: skip
    """Writes a PNG.

    Args:
      lines: (label, [2, n]); lines of one label share a colour and one entry of the legend, ''
        has none.
      log: logarithmic y where all values are above 0.
      borders: x of dotted vertical lines, such as the phases' ends.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    labels = list(dict.fromkeys(label for label, _ in lines))
    many = len(labels) > _FEW
    size = (8.6, max(3.6, 0.2 * len(labels))) if many else (6.4, 3.6)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shown: set[str] = set()
    for label, xy in lines:
        turn, place = divmod(labels.index(label), len(_COLOURS))
        style = {"color": _COLOURS[place], "ls": _STYLES[turn % len(_STYLES)]}
        name = label if label and label not in shown else None
        shown.add(label)
        axes.plot(xy[0], xy[1], label=name, lw=1.4, **style)
    for border in borders:
        axes.axvline(border, color=_MUTED, lw=0.8, ls=":")
    if log and all((xy[1] > 0).all() for _, xy in lines):
        axes.set_yscale("log")
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_GRID, lw=0.6)
    if any(labels):
        beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if many else {}
        axes.legend(frameon=False, fontsize=8 if many else 9, **beside)
    figure.savefig(path)
