"""The modes of a sequential-recommendation experiment: train, eval, predict, benchmark."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from pangu_jax.config.resolve import resolve
from pangu_jax.training import Workdir
from pangu_jax.training.signals import StopRequested
from pangu_jax.training.workdir import ALLOWED_CHANGES
from recsys_jax.evaluation.report import (
    ModelEntry,
    RecommendationExample,
    Report,
    print_table,
    read_curves,
    write_report,
)
from recsys_jax.sequential.config import ExperimentConfig, resolve_entries
from recsys_jax.sequential.dataset import Dataset, load_dataset
from recsys_jax.sequential.model import model_spec
from recsys_jax.sequential.runs import Run

# The directory of a comparison may gain models and seeds; each run guards its own settings.
_MAY_CHANGE = (*ALLOWED_CHANGES, "models", "models.*", "seeds", "evaluation.*", "predict.*",
               "cpu_devices")  # fmt: skip


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; returns the process's exit code."""
    experiment = resolve(ExperimentConfig, config)
    entries = resolve_entries(experiment)
    if mode == "benchmark":
        from recsys_jax.sequential.benchmark import benchmark

        data = load_dataset(experiment)
        return benchmark(_runs(experiment, entries, data, workdir), workdir)
    if mode == "train":
        _announce(experiment, entries, workdir)
        with Workdir.open(workdir, experiment, allowed_changes=_MAY_CHANGE):
            data = load_dataset(experiment)
            _describe_data(data)
            runs = _runs(experiment, entries, data, workdir)
            try:
                for one in runs:
                    _say(f"\n{one.entry.label}, seed {one.seed}" + _trained_text(one))
                    result = one.train()
                    if result is not None and result.interrupted:
                        return 128 + (result.signal or 15)
            except StopRequested:
                return 143
            _evaluate_and_report(experiment, data, runs, workdir)
        return 0
    data = load_dataset(experiment)
    runs = _runs(experiment, entries, data, workdir)
    if mode == "eval":
        _evaluate_and_report(experiment, data, runs, workdir)
        return 0
    from recsys_jax.sequential.predict import predict

    predict(experiment, data, runs, workdir)
    return 0


def _runs(experiment, entries, data, workdir) -> list[Run]:
    """Every model with every seed; a model without training needs one seed only."""
    return [
        Run(experiment, entry, seed, data, workdir / "models" / entry.label / f"seed{seed}")
        for entry in entries
        for seed in (experiment.seeds if entry.trains_on != "counts" else experiment.seeds[:1])
    ]


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _trained_text(one: Run) -> str:
    if not one.trained:
        return ": counts, nothing to train"
    return f": {one.train_config.steps} steps of about {one.entry.batch.batch_size} examples"


def _announce(experiment: ExperimentConfig, entries, workdir: pathlib.Path) -> None:
    names = ", ".join(entry.label for entry in entries)
    seeds = ", ".join(map(str, experiment.seeds))
    _say(
        f"Training {names} on {experiment.data.source} (split {experiment.split.kind}, "
        f"seed{'s' if len(experiment.seeds) > 1 else ''} {seeds}) on {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s).\n"
        f"Everything goes to {workdir}; the same command continues an interrupted run."
    )


def _describe_data(data: Dataset) -> None:
    log, split = data.log, data.split
    _say(
        f"{log.name}: {log.num_users:,} users, {log.num_items:,} items, {data.num_events:,} "
        f"events; {len(split.train):,} training, {len(split.valid):,} validation, "
        f"{len(split.test):,} test examples."
    )
    for note in log.notes:
        _say(f"  note: {note}")
    if log.licence:
        _say(f"  licence: {log.licence}")


def _evaluate_and_report(
    experiment: ExperimentConfig, data: Dataset, runs: list[Run], workdir: pathlib.Path
) -> Report | None:
    evaluation = experiment.evaluation
    validated = len(data.split.valid) > 0
    entries: dict[str, ModelEntry] = {}
    lists: dict[str, np.ndarray] = {}
    for one in runs:
        # Without a validation part the released protocol reports the last epoch here, and the
        # best one on the test part beside it.
        for which in ("auto",) if validated or not one.trained else ("latest", "best"):
            label = one.entry.label
            if which != "auto":
                label += {"latest": " (last epoch)", "best": " (best on test)"}[which]
            params = one.params(which)
            curves = read_curves(one.path / "metrics.jsonl")
            result = one.test(params)
            _say(
                f"test {label} seed {one.seed}: NDCG@10 {result.metrics.get('NDCG@10', 0):.4f} "
                f"({result.num_users:,} users, {result.seconds:.1f} s)"
            )
            if label not in entries:
                lists[label] = result.topk_items
                entries[label] = ModelEntry(
                    name=label,
                    results=[],
                    curves=curves,
                    validation=[],
                    parameters=sum(np.size(x) for x in jax.tree.leaves(params)),
                    train_seconds=one.train_seconds or None,
                )
            entries[label].results.append(result)
            chosen = curves.get(f"eval/{experiment.train.best_metric}")
            if validated and chosen is not None:
                entries[label].validation.append(float(np.nanmax(chosen[1])))
    if jax.process_index() != 0:
        return None
    report = write_report(
        workdir / "report",
        f"Sequential recommendation on {data.log.name}",
        list(entries.values()),
        description=_description(experiment, data),
        examples=_examples(data, entries, lists, evaluation.examples_in_report),
        notes=_notes(experiment, runs, validated),
        licence=data.log.licence,
        citation=data.log.citation,
        level=evaluation.confidence,
    )
    _say("")
    print_table(report)
    _say(f"\nReport with plots and example recommendations: {report.path}")
    return report


def _description(experiment: ExperimentConfig, data: Dataset) -> str:
    batch, loss, train = experiment.batch, experiment.loss, experiment.train
    negatives = "" if loss.kind == "full_softmax" else f", {loss.num_negatives} negatives"
    negatives += "" if loss.kind != "sampled_softmax" else f" {loss.negatives.replace('_', ' ')}"
    filtered = "history" if experiment.evaluation.history_filter == "all" else "input window"
    optimizer = train.optimizer
    return (
        f"{data.log.num_users:,} users, {data.log.num_items:,} items, {data.num_events:,} "
        f"events. Split: {experiment.split.kind}, order of ties: {experiment.split.order}. Every "
        f"item of the catalogue is ranked for every test user, less those of the user's "
        f"{filtered}. Training: {train.steps} steps of about {batch.batch_size} users, last "
        f"{batch.max_len} events each, {loss.kind.replace('_', ' ')}{negatives}, "
        f"{optimizer.name} with learning rate {optimizer.learning_rate:g}, unless a model says "
        f"otherwise. Device: {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"JAX {jax.__version__}."
    )


def _notes(experiment: ExperimentConfig, runs: list[Run], validated: bool) -> list[str]:
    notes = []
    timed = [one.entry.label for one in runs if model_spec(one.entry.model).sees_request_time]
    if timed and not data_is_untimed(runs[0].data):
        notes.append(
            f"{', '.join(dict.fromkeys(timed))} read the time of the request (the test event's "
            "timestamp) as the released code does; the other models do not. Set "
            "time_difference='items' for a comparison without it."
        )
    if not validated:
        notes.append(
            "This split has no validation part. '(best on test)' chooses the checkpoint on the "
            "test users, as the published protocol allows; '(last epoch)' does not."
        )
    if experiment.evaluation.rank_limit:
        notes.append(f"Targets below rank {experiment.evaluation.rank_limit} count as one below.")
    return notes


def data_is_untimed(data: Dataset) -> bool:
    return not data.log.has_timestamps


def _examples(data: Dataset, entries, lists, count: int) -> list[RecommendationExample]:
    """A few test users, spread over the user ids, with what the models would show them."""
    first = next(iter(entries.values())).results[0]
    count = min(count, first.num_users)
    if not count:
        return []
    titles = data.log.item_titles
    names = titles if titles is not None else np.asarray(data.log.item_ids).astype(str)
    target_of = dict(zip(data.split.test.user, data.split.test.target, strict=True))
    examples = []
    for index in np.linspace(0, first.num_users - 1, count + 2).astype(int)[1:-1]:
        user = first.users[index]
        items = data.history(user)
        target = target_of[user]
        examples.append(
            RecommendationExample(
                user=str(data.log.user_ids[user]),
                history=[str(names[i]) for i in items[max(0, target - 6) : target]],
                target=str(names[items[target]]),
                lists={
                    label: [str(names[i]) for i in top[index, :5] if i]
                    for label, top in list(lists.items())[:3]
                },
            )
        )
    return examples
