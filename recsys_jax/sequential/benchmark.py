"""Throughput of training steps and of evaluation, model by model (`launch.py --mode=benchmark`)."""

from __future__ import annotations

import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.parallel.sharding import global_batch, replicated, shardings_for, unbox
from pangu_jax.training.optimizer import build_optimizer
from pangu_jax.training.state import create_state
from pangu_jax.training.step import make_dispatch
from recsys_jax.sequential.runs import Run

WARM_UP, TIMED = 2, 8


def time_training(one: Run, steps: int = TIMED) -> dict[str, float]:
    """Seconds per step (median, warm), labels and examples per second, compile seconds."""
    batches = iter(one.data.training_batches(one.entry, one.seed))
    host = [next(batches) for _ in range(WARM_UP + steps)]
    example, mesh = host[0], one.mesh
    optimizer = build_optimizer(one.train_config.optimizer, one.train_config.steps)

    def create(key):
        return create_state(lambda k: one.model.init(k, example), optimizer, key)

    key = jax.random.key(one.seed)
    with jax.set_mesh(mesh):
        placed = shardings_for(jax.eval_shape(create, key), mesh)
        state = jax.jit(lambda k: unbox(create(k)), out_shardings=placed)(key)
        fixed = replicated(mesh)
        bad = jax.device_put(jnp.int32(-1), fixed)
        accumulation = one.train_config.grad_accumulation
        step = jax.jit(
            make_dispatch(one.model.loss, optimizer, accumulation=accumulation),
            donate_argnums=0,
            out_shardings=(placed, fixed, fixed),
        )
        seconds, labels, begin = [], [], time.perf_counter()
        compile_seconds = 0.0
        for index, batch in enumerate(host):
            stacked = global_batch({k: v[None] for k, v in batch.items()}, mesh, batch_axis=1)
            started = time.perf_counter()
            state, bad, out = step(state, bad, stacked)
            jax.block_until_ready(out)
            if index == 0:
                compile_seconds = time.perf_counter() - begin
            if index >= WARM_UP:
                seconds.append(time.perf_counter() - started)
                name = "positives" if "positives" in batch else "labels"
                labels.append(int((batch[name] > 0).sum()))
    return {
        "step_seconds": statistics.median(seconds),
        "labels_per_second": sum(labels) / sum(seconds),
        "compile_seconds": compile_seconds,
    }


def time_evaluation(one: Run) -> dict[str, float]:
    """Warm seconds of ranking the whole test part against the whole catalogue."""
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
    result = evaluator.evaluate(params, one.model.item_table, batches)
    return {"eval_seconds": result.seconds, "eval_users_per_second": result.users_per_second}


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
