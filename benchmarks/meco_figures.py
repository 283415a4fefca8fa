"""The figure of docs/meco.md, drawn from a study's report: AUROC by layer on some of its sets.

    python benchmarks/meco_figures.py --report=runs/meco/report/report.json \\
        --out=docs/figures/meco_layers.svg
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from agents_jax.tools.meco.config import PAPER_LAYERS  # noqa: E402
from agents_jax.tools.meco.plots import plot_layers  # noqa: E402

flags.DEFINE_string("report", None, "report.json of a study.", required=True)
flags.DEFINE_string("out", "docs/figures/meco_layers.svg", "The figure.")
flags.DEFINE_list(
    "sets",
    ["relevance_matched", "metatool_matched", "swap", "relevance", "metatool", "retrieval"],
    "Data sets, one panel each.",
)
flags.DEFINE_list(
    "methods", ["meco", "random direction", "probe: logistic"], "Methods that are drawn."
)
FLAGS = flags.FLAGS


def main(argv):
    del argv
    import matplotlib

    report = json.loads(pathlib.Path(FLAGS.report).read_text(encoding="utf-8"))
    curves, levels = {}, {}
    for name in FLAGS.sets:
        if name not in report["by_layer"]:
            raise app.UsageError(f"--sets has {name!r}; the report has {list(report['by_layer'])}.")
        by_layer = report["by_layer"][name]
        curves[name] = {m: by_layer[m]["auroc"] for m in FLAGS.methods if m in by_layer}
        areas = {m: found["auroc"] for m, found in report["sets"][name]["methods"].items()}
        texts = [area for method, area in areas.items() if method.startswith("text:")]
        levels[name] = {"best text control": max(texts), "P(Yes)": areas["p_yes"]}
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "meco"})
    plot_layers(
        pathlib.Path(FLAGS.out), curves, report["layers"], value="AUROC", levels=levels,
        marked=PAPER_LAYERS,
    )  # fmt: skip


if __name__ == "__main__":
    app.run(main)
