"""AUROC and accuracy by layer, one panel per data set."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

# Okabe and Ito 2008: told apart with every common form of colour blindness.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def plot_layers(
    path: pathlib.Path, curves: Mapping[str, Mapping[str, np.ndarray]], layers: Sequence[int], *,
    value: str, levels: Mapping[str, Mapping[str, float]], marked: Sequence[int],
) -> None:  # fmt: skip
    """Writes a PNG.

    Args:
      curves: by data set and method, float [C]. levels: by data set, named horizontal lines.
      value: what is plotted, for the axis. marked: layers whose range is shaded.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.2 * rows), squeeze=False, sharey=True
    )
    names = sorted({name for by_method in curves.values() for name in by_method})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    order = np.argsort(layers)
    for axis, (title, by_method) in zip(axes.flat, curves.items(), strict=False):
        axis.axvspan(min(marked) - 0.5, max(marked) + 0.5, color="#EEEEEE", zorder=0)
        for name, line in by_method.items():
            axis.plot(np.asarray(layers)[order], np.asarray(line)[order], color=colours[name],
                      label=name, linewidth=1.4)  # fmt: skip
        for (name, level), style in zip(
            levels.get(title, {}).items(), ("--", ":", "-."), strict=False
        ):
            axis.axhline(level, color="#444444", linestyle=style, linewidth=1, label=name)
        axis.axhline(0.5, color="#BBBBBB", linewidth=0.8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(title, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("layer, from the end")
    for row in axes:
        row[0].set_ylabel(value)
    seen: dict[str, object] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    figure.legend(seen.values(), seen.keys(), loc="lower center", ncol=4, fontsize=8,
                  frameon=False)  # fmt: skip
    figure.tight_layout(rect=(0, 0.6 / (3.2 * rows), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
