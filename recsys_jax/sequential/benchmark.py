"""Throughput of training steps and of evaluation, model by model (`launch.py --mode=benchmark`)."""

from __future__ import annotations

import json
import pathlib
import statistics

import jax
import numpy as np

from pangu_jax.parallel.sharding import unbox
from pangu_jax.training.optimizer import build_optimizer
from pangu_jax.training.timing import TIMED, WARM_UP, time_steps
from recsys_jax.sequential.runs import Run

EVALUATIONS = 7


def time_training(one: Run, steps: int = TIMED) -> dict[str, float]:
    """Seconds per step (median, warm), labels and examples per second, compile seconds."""
    batches = iter(one.data.training_batches(one.entry, one.seed))
    host = [next(batches) for _ in range(WARM_UP + steps)]
    config = one.train_config
    times = time_steps(
        lambda key: one.model.init(key, host[0]),
        one.model.loss,
        host,
        build_optimizer(config.optimizer, config.steps),
        one.mesh,
        seed=one.seed,
        accumulation=config.grad_accumulation,
    )
    name = "positives" if "positives" in host[0] else "labels"
    labels = sum(int((batch[name] > 0).sum()) for batch in host[WARM_UP:])
    return {
        "step_seconds": statistics.median(times.seconds),
        "labels_per_second": labels / sum(times.seconds),
        "compile_seconds": times.compile_seconds,
    }


def time_evaluation(one: Run) -> dict[str, float]:
    """Seconds of ranking the whole test part against the whole catalogue: the median of up to
    EVALUATIONS warm passes, fewer where they take long."""
    params = (
        {"table": np.ones((one.data.num_items + 1, 1), np.float32)}
        if not one.trained
        else unbox(
            jax.jit(one.model.init)(
                jax.random.key(0),
                next(iter(one.data.training_batches(one.entry, one.seed, prefetch=0))),
            )
        )
    )
    evaluator = one.evaluator
    batches = one.data.evaluation_batches(one.data.split.test)
    evaluator.evaluate(params, one.model.item_table, batches)
    seconds: list[float] = []
    while len(seconds) < EVALUATIONS and sum(seconds) < 10.0:
        result = evaluator.evaluate(params, one.model.item_table, batches)
        seconds.append(result.seconds)
    median = statistics.median(seconds)
    return {"eval_seconds": median, "eval_users_per_second": result.num_users / median}


def benchmark(runs: list[Run], workdir: pathlib.Path) -> int:
    """Times every model once, prints a table and appends to <workdir>/benchmark.jsonl."""
    from rich.console import Console
    from rich.table import Table

    first = {one.entry.label: one for one in reversed(runs)}
    table = Table(title="warm throughput")
    names = ("step ms", "labels/s", "epoch s", "compile s", "eval s", "eval users/s")
    for column in ("model", *names):
        table.add_column(column, justify="left" if column == "model" else "right")
    workdir.mkdir(parents=True, exist_ok=True)
    for label in dict.fromkeys(one.entry.label for one in runs):
        one = first[label]
        row = time_evaluation(one)
        if one.trained:
            row |= time_training(one)
            total = int((one.data.split.train.target - one.data.split.train.begin).sum())
            if one.entry.trains_on == "sequences":
                total = int(one.data.training_examples(one.entry.batch).lengths(
                    one.entry.batch.max_len).sum())  # fmt: skip
            row["epoch_seconds"] = total / row["labels_per_second"]
        keys = ("step_seconds", "labels_per_second", "epoch_seconds", "compile_seconds",
                "eval_seconds", "eval_users_per_second")  # fmt: skip
        scale = {"step_seconds": 1000.0}
        cells = [f"{row[k] * scale.get(k, 1.0):,.1f}" if k in row else "-" for k in keys]
        table.add_row(label, *cells)
        row |= {
            "model": label,
            "data": one.data.log.name,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "jax": jax.__version__,
        }
        with open(workdir / "benchmark.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    Console().print(table)
    return 0
