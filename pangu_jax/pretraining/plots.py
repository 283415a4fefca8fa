"""Line plots of a report: one figure, one style, no global state."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

Line = np.ndarray  # [2, n]: x and y

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
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

    figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    labels = list(dict.fromkeys(label for label, _ in lines))
    shown: set[str] = set()
    for label, xy in lines:
        colour = _COLOURS[labels.index(label) % len(_COLOURS)]
        name = label if label and label not in shown else None
        shown.add(label)
        axes.plot(xy[0], xy[1], label=name, color=colour, lw=1.4)
    for border in borders:
        axes.axvline(border, color=_MUTED, lw=0.8, ls=":")
    if log and all((xy[1] > 0).all() for _, xy in lines):
        axes.set_yscale("log")
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_GRID, lw=0.6)
    if any(labels):
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)
