"""Two and four real processes train a divided decoder to the parameters of one; one is killed."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import chex
import jax
import orbax.checkpoint as ocp
import pytest

SCRIPT = pathlib.Path(__file__).with_name("divided_run.py")
ROOT = pathlib.Path(__file__).resolve().parents[3]


def run(workdir, *, count, devices, layout, mode=()):
    """Starts `count` processes of `devices` fake devices each; (exit code, stdout, stderr) each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [
                sys.executable, str(SCRIPT), str(port), str(index), str(count), str(devices),
                str(workdir), json.dumps(layout), *mode,
            ],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]


def finish(workdir, **how):
    for code, out, errors in run(workdir, **how):
        assert code == 0 and "RESULT 10" in out, errors


def parameters(workdir):
    """Those of the last checkpoint, on one device."""
    folder = workdir / "checkpoints" / "latest" / "10" / "params"
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as reader:
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
            reader.metadata(folder).item_metadata.tree,
        )
        return reader.restore(folder, target)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    finish(workdir, count=1, devices=1, layout={"microbatches": 4})
    return parameters(workdir)


def test_four_processes_train_to_the_same_parameters(tmp_path, one_process):
    # Data and tensor ranks all in different processes.
    layout = {"data": 2, "tensor": 2, "microbatches": 2}
    finish(tmp_path, count=4, devices=1, layout=layout)
    chex.assert_trees_all_close(parameters(tmp_path), one_process, rtol=1e-4, atol=1e-5)


def test_a_process_that_is_behind_where_checkpoints_are_deleted(tmp_path, one_process):
    """All agree on what is superseded, although the first has deleted the files already."""
    layout = {"data": 2, "microbatches": 2}
    finish(tmp_path, count=2, devices=1, layout=layout, mode=["slow"])
    assert [path.name for path in (tmp_path / "checkpoints" / "best").iterdir()] == ["10"]
    chex.assert_trees_all_close(parameters(tmp_path), one_process, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {"pipe": 2, "tensor": 2, "microbatches": 4},
        {"data": 2, "pipe": 2, "zero": 3, "microbatches": 2},
    ],
    ids=["pipe tensor", "zero 3 pipe"],
)
def test_two_processes_train_to_the_same_parameters(tmp_path, one_process, layout):
    finish(tmp_path, count=2, devices=2, layout=layout)
    chex.assert_trees_all_close(parameters(tmp_path), one_process, rtol=1e-4, atol=1e-5)


def test_a_killed_process_ends_the_job_which_resumes_from_the_checkpoint(tmp_path, one_process):
    how = dict(count=2, devices=2, layout={"data": 2, "tensor": 2, "microbatches": 2})
    (code, out, errors), (killed, _, _) = run(tmp_path, mode=["kill"], **how)
    assert killed == -9
    assert code == 2, errors
    assert "most likely another process has ended" in out
    assert "Start all 2 processes again" in out and "checkpoint of step 4" in out
    finish(tmp_path, **how)
    steps = [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 10
    chex.assert_trees_all_close(parameters(tmp_path), one_process, rtol=1e-4, atol=1e-5)
