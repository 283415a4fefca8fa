"""Training over two real processes on loopback: same numbers, common stop, exact resume."""

import ast
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

SCRIPT = pathlib.Path(__file__).with_name("two_processes.py")
ROOT = pathlib.Path(__file__).resolve().parents[3]


def run(workdir, mode, count=2):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), str(i), str(workdir), mode],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    results = []
    for process in processes:
        out, errors = process.communicate(timeout=600)
        lines = [x for x in out.splitlines() if x.startswith(("RESULT", "REFUSED"))]
        assert lines, errors
        results.append(lines[0])
    return results


def weights(line):
    return np.array(ast.literal_eval(line[line.index("[") :]))


def test_two_processes_train_stop_and_resume(tmp_path):
    (single,) = run(tmp_path / "single", "single", count=1)
    stopped = run(tmp_path / "two", "stop")
    assert all(line.startswith("RESULT 7 True 6 2.0") for line in stopped), stopped
    resumed = run(tmp_path / "two", "go")
    assert resumed[0] == resumed[1] and resumed[0].startswith("RESULT 12 False 12 4.0")
    np.testing.assert_allclose(weights(resumed[0]), weights(single), rtol=1e-5)
    metrics = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 7
    # One process instead of two cannot take up two places in the data.
    (refused,) = run(tmp_path / "two", "single", count=1)
    assert "saved by 2 processes" in refused and "Start 2 processes" in refused
