"""Training and evaluation speed of SASRec and GRU4Rec here and in RecBole on PyTorch, same machine.

    python -m venv /tmp/peer
    /tmp/peer/bin/pip install torch==2.13.0 recbole==1.2.1 "numpy<2" pandas
    python benchmarks/recbole.py --peer_python=/tmp/peer/bin/python

Both train on every next-item target of MovieLens-100K's training part with full-softmax cross
entropy at the same widths (64, 2 layers, 1 head, window 50). RecBole cuts one training row per
target; here a window of 50 events gives 50 targets at once. So the honest unit is targets per
second: it says how long an epoch over the same targets takes. Runs alternate (ours, peer, ours,
peer, ...); medians of `--repeats` runs and their ratio are printed as JSON lines.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
_PEER = flags.DEFINE_string("peer_python", None, "Python of the peer's environment.", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 2, "Runs of each side.", lower_bound=1)
_MAX_LEN = flags.DEFINE_integer("max_len", 50, "Window of both sides, in events.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Windows per step here.")
_PEER_BATCH = flags.DEFINE_integer("peer_batch_size", 2048, "Rows per step of the peer.")
_SIDE = flags.DEFINE_string("side", None, "Internal: run our side of one model and exit.")
_PEER_NAMES = {"sasrec": "SASRec", "gru4rec": "GRU4Rec"}


def ours(model: str) -> dict:
    """Times our side in this process."""
    from configs.recsys import _base as base
    from configs.recsys._models import entry
    from pangu_jax.config.resolve import resolve
    from recsys_jax.sequential.benchmark import time_evaluation, time_training
    from recsys_jax.sequential.config import ExperimentConfig, resolve_entries
    from recsys_jax.sequential.dataset import load_dataset
    from recsys_jax.sequential.runs import Run

    config = base.ml100k({model: entry(model, 64)})
    config.batch.max_len = _MAX_LEN.value
    config.batch.batch_size = _BATCH.value
    config.batch.tile_history = True
    config.loss.kind = "full_softmax"
    experiment = resolve(ExperimentConfig, config)
    data = load_dataset(experiment)
    run = Run(experiment, resolve_entries(experiment)[0], 0, data, pathlib.Path("unused"))
    row = time_training(run, steps=24) | time_evaluation(run)
    return {
        "targets_per_second": row["labels_per_second"],
        "eval_seconds": row["eval_seconds"],
        "compile_seconds": row["compile_seconds"],
    }


def _json(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def main(argv: list[str]) -> None:
    if _SIDE.value:
        print("RESULT " + json.dumps(ours(_SIDE.value)))
        return
    peer_script = str(ROOT / "benchmarks" / "peers" / "recbole_speed.py")
    for model, peer_name in _PEER_NAMES.items():
        mine, theirs = [], []
        for _ in range(_REPEATS.value):
            common = [f"--max_len={_MAX_LEN.value}"]
            mine.append(
                _json(
                    [
                        sys.executable,
                        __file__,
                        f"--side={model}",
                        "--peer_python=unused",
                        *common,
                        f"--batch_size={_BATCH.value}",
                    ]
                )  # fmt: skip
            )
            theirs.append(
                _json(
                    [
                        _PEER.value,
                        peer_script,
                        f"--model={peer_name}",
                        *common,
                        "--epochs=1",
                        f"--batch_size={_PEER_BATCH.value}",
                    ]
                )  # fmt: skip
            )
        median = {
            key: (
                statistics.median(r[key] for r in mine),
                statistics.median(r[key] for r in theirs),
            )
            for key in ("targets_per_second", "eval_seconds")
        }
        ours_rate, peer_rate = median["targets_per_second"]
        print(
            json.dumps(
                {
                    "model": model,
                    "peer": theirs[0]["peer"],
                    "ours_targets_per_second": round(ours_rate),
                    "peer_targets_per_second": round(peer_rate),
                    "training_ratio": round(ours_rate / peer_rate, 2),
                    "ours_eval_seconds": round(median["eval_seconds"][0], 3),
                    "peer_eval_seconds": round(median["eval_seconds"][1], 3),
                    "evaluation_ratio": round(
                        median["eval_seconds"][1] / median["eval_seconds"][0], 2
                    ),
                    "repeats": _REPEATS.value,
                    "cpus": os.cpu_count(),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
