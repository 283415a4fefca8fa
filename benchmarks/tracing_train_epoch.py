"""Epochs of DKT, SAKT and AKT over a log of answers, here and in pykt-toolkit (PyTorch), on a CPU.

    python benchmarks/tracing_train_epoch.py --peer_python=/tmp/pykt/bin/python \\
        --kind=akt --path=assist2009_pid

The same networks at the same sizes, the same windows of the same students (at least three answers,
windows of 200; of a question's concepts the first), each side's own way to batches: ours in
`learning.length_buckets` lengths, pyKT's all of 200 steps, as its preprocessing pads them. The
loss and the loop are each side's own too; benchmarks/tracing_train_step.py shows that both compute
the same on the same batch. Without --path the students are simulated.

A turn is one epoch; sides take turns, after one epoch each to compile and warm up. Prints JSON
lines: seconds of an epoch, answers (not padding) per second, `ratio` as the median over rounds of
the peer's seconds over ours. See docs/tracing_speed.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import tracing_train_step as steps
from benchmarks.peers.environment import huge_pages, intel_mkl
from benchmarks.peers.timed_turns import answer_turns, tell, warm_up
from benchmarks.pretrain_step import ROOT, Side

BATCH = 64
LENGTH = 200

_KIND = flags.DEFINE_string("kind", "simulated", "Format of the answers, as --config.data.kind.")
_PATH = flags.DEFINE_string("path", None, "The file or folder of the answers.")
_STUDENTS = flags.DEFINE_integer("students", None, "Only the first so many training students.")
_BUCKETS = flags.DEFINE_integer("buckets", 4, "Lengths of our batches.", lower_bound=1)


def read_answers(kind: str, path: str | None):
    """The data of the config that docs/knowledge_tracing.md measures with."""
    from recsys_jax.tracing.data import CleaningConfig, SimulatorConfig, TracingDataConfig, load

    many = SimulatorConfig(num_students=2000, min_length=10, max_length=200)
    cleaning = CleaningConfig(min_answers=3, max_length=LENGTH, long="chop", min_window=3)
    return load(TracingDataConfig(kind=kind, path=path, clean=cleaning, simulator=many))


def with_one_concept(data, students: int | None):
    """The data with the first concept of each question, and fewer training students."""
    import numpy as np

    from recsys_jax.tracing.data.ragged import Ragged

    every = data.log.concepts
    ones = np.ones(len(every), np.int64)
    firsts = Ragged.from_lengths(ones, every.values[every.offsets[:-1]])
    log = dataclasses.replace(data.log, concepts=firsts)
    splits = dataclasses.replace(data.splits, train=data.splits.train[:students])
    return dataclasses.replace(data, log=log, splits=splits)


def write_windows(data, path: pathlib.Path) -> int:
    """The training windows as pyKT's sequences, padded with -1; how many answers they hold."""
    import numpy as np

    log, windows = data.log, data.sequences("train")
    concepts = log.concepts.padded(1)[:, 0]
    lines = ["fold,uid,questions,concepts,responses,selectmasks"]
    for student, begin, length in zip(
        windows.student.tolist(), windows.begin.tolist(), windows.lengths.tolist(), strict=True
    ):
        rows = slice(begin, begin + length)
        columns = (log.question[rows] - 1, concepts[rows] - 1, log.response[rows], [1] * length)
        padded = [np.pad(x, (0, LENGTH - length), constant_values=-1) for x in columns]
        texts = [",".join(map(str, x.tolist())) for x in padded]
        lines.append(f"0,{student}," + ",".join(f'"{text}"' for text in texts))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(windows.lengths.sum())


def shape_of(data) -> dict:
    """The fields of a shape of benchmarks/tracing_train_step.py."""
    log = data.log
    return {
        "questions": log.num_questions, "concepts": log.num_concepts, "batch": BATCH,
        "length": LENGTH,
    }  # fmt: skip


def serve(model: str) -> None:
    """Our side: one epoch to warm up, then as many as each line of the input says."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: steps.threads()])
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pangu_jax.training.optimizer import OptimizerConfig, build_optimizer
    from pangu_jax.training.state import create_state
    from pangu_jax.training.step import gradients_of, make_dispatch
    from recsys_jax.tracing.config import LearningConfig
    from recsys_jax.tracing.learning import make_loss
    from recsys_jax.tracing.runs import batch_lengths

    data = with_one_concept(read_answers(_KIND.value, _PATH.value), _STUDENTS.value)
    module = steps.our_module(model, shape_of(data))
    lengths = batch_lengths(data, _BUCKETS.value)
    windows = data.sequences("train").lengths
    answers = float(windows.mean() * BATCH)
    loss_fn = make_loss(module, LearningConfig(length_buckets=_BUCKETS.value), answers)
    batches = iter(data.training_batches(batch_size=BATCH, buckets=lengths, seed=0))
    number = np.bincount(np.searchsorted(lengths, windows), minlength=len(lengths))
    per_epoch = -(-number // BATCH)

    optimizer = build_optimizer(
        OptimizerConfig(name="adam", learning_rate=steps.OPTIMIZER["lr"]), 1
    )
    first = next(batches)
    params = jax.jit(module.init)(jax.random.key(0), first)["params"]
    state = create_state(lambda _: params, optimizer, jax.random.key(0))
    train = jax.jit(
        make_dispatch(gradients_of(lambda p, b, k: loss_fn(p, b, k, {})), optimizer),
        donate_argnums=0,
    )
    bad = jnp.int32(-1)
    waiting = [first]

    def epoch() -> float:
        nonlocal state, bad
        losses = []
        for _ in range(per_epoch.sum()):
            batch = waiting.pop() if waiting else next(batches)
            state, bad, out = train(state, bad, jax.tree.map(lambda x: x[None], batch))
            losses.append(out.total[0] / out.weight[0])
        return float(jnp.mean(jnp.stack(losses)))

    losses, seconds = warm_up(epoch, 1)
    tell(
        {
            "versions": f"jax {jax.__version__}",
            "first_epoch_seconds": seconds,
            "batches": int(per_epoch.sum()),
            "lengths": lengths,
            "cells": int((per_epoch * lengths).sum()) * BATCH,
            "losses": losses,
        }
    )
    answer_turns(epoch)


def compare(model: str, shape: dict, windows: pathlib.Path, answers: int) -> None:
    """Runs one model on both sides and prints a line for each."""
    common = [f"--threads={steps.threads()}"]
    ours = [sys.executable, __file__, *sys.argv[1:], f"--side={model}", *common]
    sides = [Side("ours", ours, windows.parent, huge_pages())]
    if flags.FLAGS.peer_python:
        peer = [
            flags.FLAGS.peer_python, str(ROOT / "benchmarks" / "peers" / "pykt_train_epoch.py"),
            f"--model={model}", f"--sizes={json.dumps(steps.peer_arguments(model, shape))}",
            f"--windows={windows}", f"--optimizer={json.dumps(steps.OPTIMIZER)}",
            f"--batch={BATCH}", *common,
        ]  # fmt: skip
        mkl = intel_mkl(windows.parent) if flags.FLAGS.mkl == "intel" else {}
        sides.append(Side("pykt", peer, windows.parent, mkl))
    for _ in range(flags.FLAGS.rounds):
        for side in sides:
            time.sleep(0.3)  # the threads of the one before go to sleep
            side.turn(1)
    for side in sides:
        pairs = list(zip(side.turns, sides[0].turns, strict=True))
        seconds = statistics.median(turn["step"] for turn in side.turns)
        elsewhere = [turn["elsewhere"] for turn in side.turns if turn["elsewhere"] is not None]
        line = {
            "model": model, "side": side.name, "epoch_seconds": round(seconds, 2),
            "answers_per_second": round(answers / seconds),
            "ratio": round(statistics.median(a["step"] / b["step"] for a, b in pairs), 2),
            "ratios": [round(a["step"] / b["step"], 2) for a, b in pairs],
            "padding": round(1 - answers / side.report["cells"], 3),
            "peak_rss_mib": max(turn["peak_rss_mib"] for turn in side.turns),
            **{k: v for k, v in side.report.items() if k != "losses"},
        }  # fmt: skip
        if elsewhere:
            line["cores_busy_elsewhere"] = round(statistics.median(elsewhere), 2)
        print(json.dumps(line), flush=True)
        side.close()


def main(argv):
    del argv
    if flags.FLAGS.side:
        serve(flags.FLAGS.side)
        return
    data = with_one_concept(read_answers(_KIND.value, _PATH.value), _STUDENTS.value)
    with tempfile.TemporaryDirectory() as scratch:
        windows = pathlib.Path(scratch) / "windows.csv"
        answers = write_windows(data, windows)
        head = {
            "kind": _KIND.value, **shape_of(data), "answers": answers,
            "windows": len(data.sequences("train")), "threads": steps.threads(),
            "rounds": flags.FLAGS.rounds, "python": platform.python_version(),
            "processor": steps.processor(),
        }  # fmt: skip
        print(json.dumps(head), flush=True)
        for model in flags.FLAGS.models:
            compare(model, shape_of(data), windows, answers)


if __name__ == "__main__":
    app.run(main)
