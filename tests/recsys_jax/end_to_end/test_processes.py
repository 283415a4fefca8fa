"""Two real processes (jax.distributed on loopback) train and evaluate as one process does."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from command_line import CONFIG, ROOT, columns, environment, write_log  # noqa: E402


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(workdir):
    lines = (workdir / "models/fuxi_alpha/seed0/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r["values"]["loss"] for r in records if r["kind"] == "train"]


def ndcg(workdir):
    results = json.loads((workdir / "report/results.json").read_text())
    return {m["model"]: m["metrics"]["NDCG@10"]["mean"] for m in results["models"]}


@pytest.mark.parametrize("model_axis", [1, 2])
def test_two_processes_equal_one(tmp_path, model_axis):
    """model_axis 1 splits the batch, 2 the rows of the item table, over the processes."""
    log = write_log(tmp_path / "log.csv")
    common = [
        CONFIG,
        *columns(log),
        f"--config.train.mesh.model={model_axis}",
        "--config.train.steps=6",
        "--config.batch.batch_size=16",
        "--config.models.sasrec.steps=2",
    ]
    one = start([*common, "--cpu_devices=2", f"--workdir={tmp_path / 'one'}"])
    output, _ = one.communicate(timeout=500)
    assert one.returncode == 0, output[-3000:]
    address = f"127.0.0.1:{free_port()}"
    pair = [
        start(
            [
                *common,
                "--cpu_devices=1",
                f"--workdir={tmp_path / 'two'}",
                f"--coordinator_address={address}",
                "--num_processes=2",
                f"--process_id={index}",
            ]
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=500)[0] for process in pair]
    assert [p.returncode for p in pair] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert ndcg(tmp_path / "two") == pytest.approx(ndcg(tmp_path / "one"), abs=2e-3)
