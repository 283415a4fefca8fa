"""What a fine-tuning run leaves for people and programs: report.json and a plot of the losses."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.sft.config import SftConfig
from pangu_jax.training.sft.prepare import Examples
from pangu_jax.training.workdir import write_json


def write_report(
    workdir: pathlib.Path, config: SftConfig, examples: Examples, *, steps: int, best_step: int,
    baseline: dict[str, float], trained: int, total: int, export: pathlib.Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Writes <workdir>/report/report.json and loss.png; returns what is in the former.

    Args:
      steps: done. best_step: of the exported parameters. baseline: held-out values of step 0.
      trained: parameters that were trained, out of `total`.
      export: the folder of the tuned model or adapter, named relative to the work directory.
    """
    import jax

    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    records = read_metrics(workdir / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    evals = [r for r in records if r["kind"] == "eval"]
    best = next((r["values"] for r in evals if r["step"] == best_step), {})
    rates = [r["time"]["tokens_per_second"] for r in train if "tokens_per_second" in r["time"]]
    report = {
        "objective": config.objective,
        "tune": config.tune,
        "base": config.base,
        "trained_parameters": trained,
        "parameters": total,
        "steps": steps,
        "best_step": best_step,
        "held_out_before": baseline,
        "held_out_best": best,
        "train_loss_last": train[-1]["values"]["loss"] if train else None,
        "tokens_per_second_median": float(np.median(rates)) if rates else None,
        "examples": {
            name: {
                "read": r.read,
                "kept": r.kept,
                "dropped": dict(r.dropped),
                "truncated": r.truncated,
                "tokens": r.tokens,
                "learned_tokens": r.learned,
            }
            for name, r in examples.reports.items()
        },  # fmt: skip
        "row": examples.shape._asdict(),
        "rows_of_an_epoch": examples.rows_of_epoch(config.train.seed),
        "export": None if export is None else export.relative_to(workdir).as_posix(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    write_json(folder / "report.json", report)
    _plot(folder / "loss.png", train, evals, baseline)
    return report


def _plot(path, train, evals, baseline) -> None:
    from pangu_jax.pretraining.plots import plot_lines

    held = [(0, baseline["loss"])] if "loss" in baseline else []
    held += [(r["step"], r["values"]["loss"]) for r in evals]
    lines = [
        ("training", np.array([(r["step"], r["values"]["loss"]) for r in train], float)),
        ("held out", np.array(held, float)),
    ]
    plot_lines(path, "Loss", "step", [(name, xy.reshape(-1, 2).T) for name, xy in lines if len(xy)])
