"""Several pre-training runs that differ in a few settings, side by side: an ablation.

Every run has its own work directory below <workdir>/runs; what is finished is not done again, and a
run that diverges (a loss or gradient that is not finite) is recorded as such and the rest goes on.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pangu_jax.config.resolve import resolve, to_dict
from pangu_jax.pretraining import experiment
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.pretraining.corpus import open_corpus
from pangu_jax.pretraining.plots import Line, plot_lines
from pangu_jax.pretraining.population import Member, alike, populations, train_population
from pangu_jax.training import Workdir
from pangu_jax.training.errors import NonFiniteError
from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.workdir import ALLOWED_CHANGES

DIVERGED = "diverged.json"
_MAY_CHANGE = (*ALLOWED_CHANGES, "runs", "runs.*", "seeds", "cpu_devices", "base.corpus_folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """runs: label -> nested settings that replace those of `base`; every run with every seed.

    together: runs that differ in seed, learning rate and initial values only are trained side by
      side in one program on one device (`population`). Their numbers agree with those of single
      runs up to rounding; there are no checkpoints of single members.
    """

    experiment: str = "pangu.comparison"
    cpu_devices: int = 1
    base: PretrainConfig
    runs: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1)
    together: bool = False

    def __post_init__(self):
        if not self.runs or not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a comparison needs runs, and seeds that are distinct")
        if self.base.initial_weights:
            raise ValueError(
                "base.initial_weights: the runs of a comparison start from drawn values"
            )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run came to.

    loss: the last held-out loss, NaN if it diverged before one. spikes: of the training loss.
    largest_gradient: largest mean gradient norm of a log window. diverged_at: step, or None.
    train, held_out: (steps, values) of the losses. gradients: (steps, values).
    """

    label: str
    seed: int
    loss: float
    spikes: int
    largest_gradient: float
    diverged_at: int | None
    train: Line
    held_out: Line
    gradients: Line


def replaced(config: Any, changes: Mapping[str, Any], path: str = "") -> Any:
    """A dataclass with nested fields replaced by those of `changes`.

    Raises:
      ValueError: a key that is no field, with a suggestion.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    values = {}
    for key, value in changes.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f" Did you mean {path}{close[0]}?" if close else ""
            raise ValueError(
                f"unknown setting {path}{key}.{hint} Known: {', '.join(sorted(fields))}"
            )
        old = getattr(config, key)
        nested = dataclasses.is_dataclass(old) and isinstance(value, Mapping)
        values[key] = replaced(old, value, f"{path}{key}.") if nested else value
    return dataclasses.replace(config, **values)


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode: train (all runs and the report) or eval (the report only)."""
    wanted = resolve(ComparisonConfig, config)
    if mode not in ("train", "eval"):
        raise ValueError(f"--mode={mode} does not exist for a comparison; use train or eval.")
    children = [
        (label, seed, replaced(replaced(wanted.base, changes), {"train": {"seed": seed}}))
        for label, changes in wanted.runs.items()
        for seed in wanted.seeds
    ]
    if mode == "train":
        with Workdir.open(workdir, wanted, allowed_changes=_MAY_CHANGE):
            for group in _groups(wanted, children):
                _say(
                    f"\n{', '.join(f'{children[i][0]} seed {children[i][1]}' for i in group)} "
                    f"({group[0] + 1} of {len(children)})"
                )
                members = [
                    Member(child, workdir / "runs" / label / f"seed{seed}")
                    for label, seed, child in (children[i] for i in group)
                ]
                code = _train_together(members, workdir) if wanted.together else _train_one(
                    members[0].config, members[0].folder
                )  # fmt: skip
                if code:
                    return code
    outcomes = [
        _outcome(label, seed, workdir / "runs" / label / f"seed{seed}")
        for label, seed, _ in children
    ]
    if jax.process_index() == 0:
        path = write_comparison(workdir / "report", wanted, [o for o in outcomes if o is not None])
        _say(f"\nReport: {path}")
    return 0


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _groups(config, children) -> list[list[int]]:
    """Indices of the runs that are trained at one time."""
    if not config.together:
        return [[index] for index in range(len(children))]
    return populations([child for _, _, child in children])


def _train_together(members: list[Member], workdir: pathlib.Path) -> int:
    config = members[0].config
    corpus = open_corpus(config, config.phase_schedule())
    name = hashlib.sha256(json.dumps(to_dict(alike(config)), sort_keys=True).encode()).hexdigest()

    def diverged(index, step):
        _record_divergence(members[index].folder, step, "a loss or gradient is not finite")

    store = workdir / "populations" / name[:16]
    return train_population(members, corpus, store, diverged=diverged)


def _record_divergence(folder: pathlib.Path, step: int, message: str) -> None:
    (folder / DIVERGED).write_text(json.dumps({"after_step": step, "message": message}))


def _train_one(config: PretrainConfig, folder: pathlib.Path) -> int:
    if (folder / DIVERGED).exists():
        _say("diverged before; delete its folder to try again")
        return 0
    schedule = config.phase_schedule()
    corpus = open_corpus(config, schedule)
    try:
        return experiment.train(config, schedule, corpus, folder)
    except NonFiniteError as error:
        if jax.process_index() == 0:
            _record_divergence(folder, error.step, str(error))
        _say(f"diverged after step {error.step}")
        return 0


def _outcome(label: str, seed: int, folder: pathlib.Path) -> Outcome | None:
    """None where the run has not begun."""
    if not (folder / "metrics.jsonl").exists():
        return None
    records = read_metrics(folder / "metrics.jsonl")

    def line(kind, name) -> Line:
        chosen = [r for r in records if r["kind"] == kind]
        pairs = [(r["step"], r["values"].get(name)) for r in chosen]
        pairs = [pair for pair in pairs if isinstance(pair[1], (int, float))]
        return np.array(pairs, float).reshape(-1, 2).T

    held_out, gradients = line("eval", "loss"), line("train", "grad_norm")
    spikes = line("train", "loss_spikes")
    diverged = None
    if (folder / DIVERGED).exists():
        diverged = int(json.loads((folder / DIVERGED).read_text())["after_step"])
    return Outcome(
        label, seed,
        float(held_out[1, -1]) if held_out.shape[1] else float("nan"),
        int(spikes[1, -1]) if spikes.shape[1] else 0,
        float(gradients[1].max()) if gradients.shape[1] else float("nan"),
        diverged, line("train", "loss"), held_out, gradients,
    )  # fmt: skip


def write_comparison(
    folder: pathlib.Path, config: ComparisonConfig, outcomes: list[Outcome]
) -> pathlib.Path:
    """Writes report.md with a table (best first) and plots, results.json, and returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = list(dict.fromkeys(outcome.label for outcome in outcomes))
    grouped = {label: [o for o in outcomes if o.label == label] for label in labels}

    def mean_loss(label):
        value = float(np.mean([o.loss for o in grouped[label]]))
        return value if np.isfinite(value) else float("inf")

    labels.sort(key=mean_loss)
    lines = [
        "# Comparison of pre-training runs", "",
        f"{config.base.schedule.tokens:,.0f} tokens each, seeds "
        f"{', '.join(map(str, config.seeds))}; {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, JAX {jax.__version__}.", "",
        "| run | held-out loss | by seed | loss spikes | largest gradient norm | diverged |",
        "| --- | ---: | --- | ---: | ---: | --- |",
    ]  # fmt: skip
    for label in labels:
        group = grouped[label]
        losses = np.array([o.loss for o in group])
        spread = f" ±{losses.std(ddof=1):.4f}" if len(losses) > 1 else ""
        lost = [f"seed {o.seed} after {o.diverged_at}" for o in group if o.diverged_at is not None]
        lines.append(
            f"| {label} | {losses.mean():.4f}{spread} | "
            f"{', '.join(f'{x:.4f}' for x in losses)} | {sum(o.spikes for o in group)} | "
            f"{max(o.largest_gradient for o in group):.3g} | {', '.join(lost) or 'no'} |"
        )
    lines += [
        "", "± is the standard deviation over seeds. A loss spike is a step more than six standard "
        "deviations and 0.1 nats above the running mean. Gradient norms are means over a log "
        "window, before clipping.", "",
    ]  # fmt: skip
    for name, title, log in (
        ("train", "Training loss", False), ("held_out", "Held-out loss", False),
        ("gradients", "Gradient norm", True),
    ):  # fmt: skip
        curves = [(label, getattr(o, name)) for label in labels for o in grouped[label]]
        curves = [(label, xy) for label, xy in curves if xy.shape[1]]
        if curves:
            plot_lines(folder / f"{name}.png", title, "step", curves, log=log)
            lines += [f"![{title} over steps, one line per seed]({name}.png)", ""]

    def number(value):
        return value if np.isfinite(value) else None

    rows = [
        {
            "run": o.label, "seed": o.seed,
            "held_out_loss": number(o.loss),
            "loss_spikes": o.spikes,
            "largest_gradient_norm": number(o.largest_gradient),
            "diverged_after": o.diverged_at,
        }
        for o in outcomes
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")
    path = folder / "report.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
