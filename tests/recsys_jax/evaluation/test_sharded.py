"""Ranking over a mesh equals ranking on one device; two real processes equal one."""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from recsys_jax.evaluation.ranking import rank_targets_and_topk
from recsys_jax.evaluation.sharded import pad_rows, rank_targets_and_topk_sharded

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def mesh_of(shape):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)")
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def problem(items, batch=16, dim=4, width=9):
    rng = np.random.default_rng(items)
    return (
        rng.integers(-2, 3, (batch, dim)).astype(np.float32),
        rng.integers(-2, 3, (items + 1, dim)).astype(np.float32),
        rng.integers(0, items + 1, batch).astype(np.int32),
        rng.integers(0, items + 1, (batch, width)).astype(np.int32),
    )


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("items,block", [(1000, 32), (203, None)])
@pytest.mark.parametrize("filter_target", [False, True])
def test_equals_single_device(shape, items, block, filter_target):
    users, table, targets, history = problem(items)
    allowed = np.random.default_rng(0).random(items + 1) < 0.8
    options = dict(k=30, filter_target=filter_target)
    want = rank_targets_and_topk(users, table, targets, history, allowed_items=allowed, **options)
    got = rank_targets_and_topk_sharded(
        users,
        pad_rows(table, shape[1]),
        targets,
        history,
        mesh=mesh_of(shape),
        num_items=items,
        block_items=block,
        allowed_items=pad_rows(allowed, shape[1]),
        **options,
    )
    chex.assert_trees_all_equal(got, want)


def test_list_longer_than_a_shard():
    users, table, targets, history = problem(63)
    want = rank_targets_and_topk(users, table, targets, history, k=40)
    got = rank_targets_and_topk_sharded(users, table, targets, history, mesh=mesh_of((1, 8)), k=40)
    chex.assert_trees_all_equal(got, want)


def test_no_device_holds_the_whole_table():
    """The compiled program must not gather the table: its temporaries stay below one table."""
    mesh = mesh_of((1, 8))
    rows, dim = 2**15, 64
    spec = lambda s, d, p: jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, p))  # noqa: E731
    arguments = (
        spec((16, dim), np.float32, P("data")), spec((rows, dim), np.float32, P("model")),
        spec((16,), np.int32, P("data")), spec((16, 8), np.int32, P("data")),
    )  # fmt: skip
    run = jax.jit(lambda *a: rank_targets_and_topk_sharded(*a, mesh=mesh, k=5, block_items=1024))
    compiled = run.lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * dim * 4 / 2
    assert "f32[32768,64]" not in compiled.as_text()


def test_errors():
    users, table, targets, history = problem(1000)
    mesh = mesh_of((2, 4))
    with pytest.raises(ValueError, match="1001 item-table rows do not divide by the 4 devices"):
        rank_targets_and_topk_sharded(users, table, targets, history, mesh=mesh, k=1)
    table = pad_rows(table, 4)
    with pytest.raises(ValueError, match="15 users do not divide by the 2 devices"):
        rank_targets_and_topk_sharded(users[:15], table, targets[:15], history[:15], mesh=mesh, k=1)
    with pytest.raises(ValueError, match="no axis 'expert'"):
        rank_targets_and_topk_sharded(
            users, table, targets, history, mesh=mesh, k=1, model_axis="expert"
        )


WORKER = """
import json, sys
import jax
from jax.sharding import AxisType
from process_problem import problem, record

process, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
params, batches = problem()
make = lambda *shape: jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
half = [{name: x[process * 4:(process + 1) * 4] for name, x in b.items()} for b in batches]
found = {
    # The table is split over the processes: both hold all rows.
    "table": record(params, batches, make(1, 2)),
    "users": record(params, half, make(2, 1)),
    # Each on its own, unevenly; then one of them without any user.
    "apart": record(params, batches[2:] if process else batches[:2]),
    "idle": record(params, [] if process else batches),
}
with open(f"{out}{process}", "w") as file:
    json.dump(found, file)
"""


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script, out = tmp_path / "worker.py", tmp_path / "found"
    script.write_text(WORKER)
    env = dict(
        os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{HERE}", JAX_PLATFORMS="cpu", XLA_FLAGS=""
    )
    env["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(i), port, str(out)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    spec = importlib.util.spec_from_file_location("process_problem", HERE / "process_problem.py")
    process_problem = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(process_problem)
    want = json.loads(json.dumps(process_problem.record(*process_problem.problem())))
    assert len(want["users"]) == 21
    try:
        for process in started:
            text, _ = process.communicate(timeout=600)
            assert process.returncode == 0, text[-3000:]
    finally:
        for process in started:
            process.kill()
    for i in range(2):
        found = json.loads(pathlib.Path(f"{out}{i}").read_text())
        for name, got in found.items():
            assert got == want, (i, name)
