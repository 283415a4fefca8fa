"""The modes of a knowledge-tracing experiment: train, eval, predict."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax

from pangu_jax.config.resolve import ConfigError, resolve
from pangu_jax.training import Workdir
from pangu_jax.training.signals import StopRequested
from pangu_jax.training.workdir import ALLOWED_CHANGES
from recsys_jax.tracing.config import Entry, TracingConfig, resolve_entries
from recsys_jax.tracing.data import TracingData, load, make_split
from recsys_jax.tracing.evaluation.evaluator import evaluate
from recsys_jax.tracing.evaluation.floors import bayes_ceiling, fit_rates, make_floors
from recsys_jax.tracing.evaluation.leaks import check_disjoint_students
from recsys_jax.tracing.evaluation.report import TracingReport, write_report
from recsys_jax.tracing.evaluation.summary import SparsityPoint, TracingEntry
from recsys_jax.tracing.runs import Run

# The directory of a comparison may gain models, seeds and parts; each run guards its own settings.
_MAY_CHANGE = (*ALLOWED_CHANGES, "models", "models.*", "seeds", "train_fractions", "evaluation.*",
               "predict.*", "learning.epochs", "cpu_devices")  # fmt: skip
CEILING = "exact predictor"


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; returns the process's exit code."""
    del command
    experiment = resolve(TracingConfig, config)
    entries = resolve_entries(experiment)
    if mode not in ("train", "eval", "predict"):
        raise ConfigError(
            f"--mode={mode} does not exist for knowledge tracing; use train, eval or predict. "
            "benchmarks/tracing_train_step.py times training."
        )
    if mode == "train":
        _say(_announcement(experiment, entries, workdir))
        with Workdir.open(workdir, experiment, allowed_changes=_MAY_CHANGE):
            data = load(experiment.data)
            _describe_data(data)
            try:
                for one in all_runs(experiment, entries, data, workdir):
                    _say(f"\n{_title(one)}")
                    result = one.train()
                    if result is not None and result.interrupted:
                        return 128 + (result.signal or 15)
                evaluate_and_report(experiment, entries, data, workdir)
            except StopRequested:
                return 143
        return 0
    data = load(experiment.data)
    if mode == "eval":
        evaluate_and_report(experiment, entries, data, workdir)
        return 0
    from recsys_jax.tracing.predict import predict

    predict(experiment, data, all_runs(experiment, entries, data, workdir), workdir)
    return 0


def all_runs(
    experiment: TracingConfig, entries: list[Entry], data: TracingData, workdir: pathlib.Path
) -> list[Run]:
    """Every part of the training students, model and seed; a closed form needs one seed."""
    return [
        Run(experiment, entry, seed, part, _folder(workdir, entry, seed, share, experiment))
        for share, part in _parts(experiment, data).items()
        for entry in entries
        for seed in (experiment.seeds if entry.trained else experiment.seeds[:1])
    ]


def _folder(workdir, entry, seed, share, experiment) -> pathlib.Path:
    folder = pathlib.Path(workdir) / "models" / entry.label
    if share != experiment.train_fractions[0]:
        folder /= f"students_{100 * share:g}pct"
    return folder / f"seed{seed}"


def _parts(experiment: TracingConfig, data: TracingData) -> dict[float, TracingData]:
    """The data with each share of its training students; validation and test stay."""
    found = {}
    for share in experiment.train_fractions:
        # Of what the data's own setting leaves.
        fraction = share * data.config.split.train_fraction
        split = dataclasses.replace(data.config.split, train_fraction=fraction)
        found[share] = dataclasses.replace(
            data,
            config=dataclasses.replace(data.config, split=split),
            splits=make_split(data.log, split),
        )
        splits = found[share].splits
        check_disjoint_students(
            {name: getattr(splits, name) for name in ("train", "valid", "test")}
        )
    return found


def evaluate_and_report(
    experiment: TracingConfig, entries: list[Entry], data: TracingData, workdir: pathlib.Path
) -> TracingReport | None:
    """Tests every run, writes the report; None on all but the first process."""
    points: list[tuple[int, list[TracingEntry]]] = []
    notes = []
    for share, part in _parts(experiment, data).items():
        tested: dict[str, TracingEntry] = {}
        for entry in entries:
            results = []
            for seed in experiment.seeds if entry.trained else experiment.seeds[:1]:
                folder = _folder(workdir, entry, seed, share, experiment)
                one = Run(experiment, entry, seed, part, folder)
                result = one.test(one.params())
                chosen = result.get(entry.selection) or next(iter(result.values()))
                _say(
                    f"test {_title(one)}: AUC {chosen.overall.values['AUC']:.4f} "
                    f"({chosen.protocol.name})"
                )
                results.append(result)
            tested[entry.label] = TracingEntry(entry.label, results, note=_note(entry))
        points.append((len(part.splits.train), [*tested.values(), *_floors(experiment, part)]))
    if data.unseen_questions:
        notes.append(
            f"{data.unseen_questions:,} questions of validation and test students never occur in "
            "training."
        )
    if jax.process_index() != 0:
        return None
    report = write_report(
        pathlib.Path(workdir) / "report",
        f"Knowledge tracing on {data.log.name}",
        points[0][1],
        description=_description(experiment, data, points[0][0]),
        sparsity=[SparsityPoint(n, found) for n, found in points] if len(points) > 1 else (),
        notes=notes,
        licence=data.log.licence,
        citation=data.log.citation,
        level=experiment.evaluation.confidence,
    )
    _print(report)
    _say(f"\nReport with plots: {report.path}")
    return report


def _floors(experiment: TracingConfig, data: TracingData) -> list[TracingEntry]:
    """Rates of the training students, and the exact predictor where the world is simulated."""
    size = experiment.evaluation.batch_size
    training = [b.batch for b in data.evaluation_batches("train", batch_size=size)]
    predictors = make_floors(fit_rates(training))
    if data.simulation is not None:
        predictors[CEILING] = bayes_ceiling(data.simulation.world, data.log.question_ids)
    entries = []
    for name, predictor in predictors.items():
        result = evaluate(
            predictor, data.evaluation_batches("test", batch_size=size),
            experiment.evaluation.chosen(),
            num_resamples=experiment.evaluation.resamples,
        )  # fmt: skip
        note = "" if name != CEILING else "The simulator's own predictor: nothing is better."
        # As a model, not a floor: models are compared with the best floor.
        entries.append(TracingEntry(name, [result], floor=name != CEILING, note=note))
    return entries


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _title(one: Run) -> str:
    students = len(one.data.splits.train)
    text = f"{one.entry.label}, seed {one.seed}, {students:,} training students"
    if not one.entry.trained:
        return text + ", fitted in closed form"
    train = one.train_config
    patience = train.early_stopping_patience
    early = f", ends after {patience} evaluations without gain" if patience else ""
    return f"{text}, at most {train.steps:,} steps of {one.entry.learning.batch_size}{early}"


def _announcement(experiment: TracingConfig, entries: list[Entry], workdir) -> str:
    names = ", ".join(entry.label for entry in entries)
    seeds = ", ".join(map(str, experiment.seeds))
    return (
        f"Training {names} on {experiment.data.kind}, seed"
        f"{'s' if len(experiment.seeds) > 1 else ''} {seeds}, on {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s).\n"
        f"Everything goes to {workdir}; the same command continues an interrupted run."
    )


def _describe_data(data: TracingData) -> None:
    _say(str(data.report))
    splits = data.splits
    _say(
        f"{len(splits.train):,} training, {len(splits.valid):,} validation and "
        f"{len(splits.test):,} test students."
    )
    if data.log.licence:
        _say(f"  licence: {data.log.licence}")


def _description(experiment: TracingConfig, data: TracingData, students: int) -> str:
    log, learning, train = data.log, experiment.learning, experiment.train
    return (
        f"{log.num_students:,} students, {log.num_questions:,} questions, {log.num_concepts:,} "
        f"concepts, {len(log):,} answers; {students:,} training, {len(data.splits.valid):,} "
        f"validation and {len(data.splits.test):,} test students, none in two parts. Training: "
        f"batches of {learning.batch_size} students, {train.optimizer.name} with learning rate "
        f"{train.optimizer.learning_rate:g}, at most {learning.epochs} epochs, checkpoint by "
        f"validation AUC ({experiment.evaluation.selection}), unless a model says otherwise. "
        f"Device: {jax.device_count()} x {jax.devices()[0].device_kind}, JAX {jax.__version__}."
    )


def _note(entry: Entry) -> str:
    parts = []
    if entry.learning.supervision != "true":
        parts.append(f"trained on its own answers ({entry.learning.supervision})")
    if entry.spec.program is not None:
        adversarial = entry.config.adversarial
        parts.append(
            f"generator fed with {adversarial.supervision!r}, rl_weight {adversarial.rl_weight:g}"
        )
    if parts:
        parts.append(f"checkpoint by {entry.selection}")
    return "; ".join(parts)


def _print(report: TracingReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="AUC on the test students")
    table.add_column("model")
    for found in report.tables:
        table.add_column(found.protocol.name, justify="right")
    names = dict.fromkeys(f.entry.name for found in report.tables for f in found.models)
    for name in names:
        cells = []
        for found in report.tables:
            figures = [f for f in found.models if f.entry.name == name]
            cells.append(f"{figures[0].metrics['AUC'].interval.mean:.4f}" if figures else "")
        table.add_row(name, *cells)
    Console().print(table)
