"""A run stopped at any moment and started again equals one that was never stopped, bit for bit."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("tiny_run.py")
ROOT = pathlib.Path(__file__).resolve().parents[3]


def start(workdir, out, *flags):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(workdir), str(out), "--per-dispatch", "4", *flags],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return errors


def wait_for_step(workdir, least, process):
    """Blocks until the run has logged `least` steps."""
    file = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        lines = file.read_text().splitlines() if file.exists() else []
        if any(_step(line) >= least for line in lines):
            return
        time.sleep(0.01)
    raise AssertionError("the run did not get going")


def _step(line):
    try:
        return json.loads(line)["step"]
    except ValueError:
        return -1


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def assert_same_run(workdir, out, reference):
    expected_dir, expected_out = reference
    with np.load(out) as got, np.load(expected_out) as want:
        assert set(got.files) == set(want.files)
        for name in want.files:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert records(workdir) == records(expected_dir)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    finish(start(folder / "run", folder / "out.npz"))
    steps = [r["step"] for r in records(folder / "run") if r["kind"] == "eval"]
    assert steps == [15, 30, 45, 60]
    return folder / "run", folder / "out.npz"


def test_sigterm_and_resume_is_bitwise_equal(tmp_path, reference):
    run, out = tmp_path / "run", tmp_path / "out.npz"
    process = start(run, out, "--slow", "0.06")
    wait_for_step(run, random.choice([7, 14, 21]), process)
    delay = random.random() * 0.8
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 143, (delay, errors)
    assert "SIGTERM received" in errors
    assert not out.exists()
    finish(start(run, out))
    assert_same_run(run, out, reference)


def test_two_kills_and_resume_is_bitwise_equal(tmp_path, reference):
    run, out = tmp_path / "run", tmp_path / "out.npz"
    for least in (14, 30):
        process = start(run, out, "--slow", "0.06")
        wait_for_step(run, least, process)
        time.sleep(random.random() * 0.8)
        process.kill()
        process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL
    finish(start(run, out))
    assert_same_run(run, out, reference)
    leftovers = [p for p in (run / "checkpoints").rglob("*") if "tmp" in p.name]
    assert not leftovers
