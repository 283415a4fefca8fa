"""Meshes, logical rules and batch placement on 8 fake devices."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pangu_jax.parallel import (
    DistributedConfig,
    MeshConfig,
    MeshError,
    abstract_with_shardings,
    global_batch,
    initialize,
    make_mesh,
    shardings_for,
    unbox,
)


class Model(nn.Module):
    rows: int = 10

    @nn.compact
    def __call__(self, ids):
        table = self.param(
            "table",
            nn.with_logical_partitioning(nn.initializers.normal(), ("items", "embed")),
            (self.rows, 4),
        )
        return nn.Dense(3)(table[ids])


def abstract(rows=10):
    return jax.eval_shape(Model(rows).init, jax.random.key(0), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize(
    "config, shape",
    [
        (MeshConfig(), (8, 1)),
        (MeshConfig(4, 2), (4, 2)),
        (MeshConfig(-1, 4), (2, 4)),
        (MeshConfig(2, -1), (2, 4)),
    ],
)
def test_mesh_sizes(config, shape):
    mesh = make_mesh(config)
    assert (mesh.shape["data"], mesh.shape["model"]) == shape
    assert len({d.id for d in mesh.devices.flat}) == 8


@pytest.mark.parametrize(
    "data, model, message",
    [
        (3, -1, "8 devices cannot be divided by train.mesh.data=3"),
        (-1, 5, "8 devices cannot be divided by train.mesh.model=5"),
        (2, 2, "is 4, but there are 8 devices"),
        (-1, -1, "at most one may be -1"),
        (0, 1, "at least 1"),
    ],
)
def test_mesh_errors(data, model, message):
    with pytest.raises(MeshError, match=message):
        make_mesh(MeshConfig(data, model))


def test_logical_names_become_shardings():
    mesh = make_mesh(MeshConfig(4, 2))
    shardings = shardings_for(abstract(), mesh)["params"]
    assert shardings["table"].spec == P("model", None)
    assert shardings["Dense_0"]["kernel"].spec == P()
    # An axis of size 1 splits nothing, so nothing has to be divisible.
    alone = shardings_for(abstract(rows=11), make_mesh(MeshConfig(8, 1)))["params"]
    assert alone["table"].is_fully_replicated
    other = shardings_for(abstract(), mesh, rules=(("embed", "model"), ("items", None)))["params"]
    assert other["table"].spec == P(None, "model")


def test_sharded_init_equals_plain_init():
    mesh = make_mesh(MeshConfig(4, 2))

    def init(key):
        return unbox(Model().init(key, jnp.zeros(2, jnp.int32)))

    sharded = jax.jit(init, out_shardings=shardings_for(abstract(), mesh))(jax.random.key(0))
    assert sharded["params"]["table"].addressable_shards[0].data.shape == (5, 4)
    for a, b in zip(
        jax.tree.leaves(sharded), jax.tree.leaves(init(jax.random.key(0))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    target = abstract_with_shardings(abstract(), mesh)
    assert target["params"]["table"].sharding.spec == P("model", None)
    assert jax.tree.structure(target) == jax.tree.structure(sharded)


def test_indivisible_parameter_is_named():
    with pytest.raises(MeshError, match=r"table.*11 entries on axis 0 \('items'\).*size 2; pad it"):
        shardings_for(abstract(rows=11), make_mesh(MeshConfig(4, 2)))


@pytest.mark.parametrize("batch_axis", [0, 1])
def test_global_batch_splits_rows(batch_axis):
    mesh = make_mesh(MeshConfig(4, 2))
    host = np.arange(2 * 8 * 3).reshape((8, 2, 3) if batch_axis == 0 else (2, 8, 3))
    placed = global_batch({"x": host}, mesh, batch_axis=batch_axis)["x"]
    np.testing.assert_array_equal(placed, host)
    assert placed.addressable_shards[0].data.shape[batch_axis] == 2
    assert len({s.device for s in placed.addressable_shards}) == 8


def test_global_batch_errors():
    mesh = make_mesh(MeshConfig(8, 1))
    with pytest.raises(MeshError, match=r"\['x'\] has 12 rows.*data=8.*batch size a multiple"):
        global_batch({"x": np.zeros((12, 2))}, mesh)
    with pytest.raises(MeshError, match="has no rows"):
        global_batch({"x": np.float32(1)}, mesh)


def test_single_process_is_no_distributed_run(monkeypatch):
    for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"PANGU_JAX_{name}", raising=False)
    assert initialize() is False
    assert initialize(DistributedConfig("127.0.0.1:1", 1, 0)) is False


@pytest.mark.parametrize(
    "config, message",
    [
        (DistributedConfig(num_processes=2), "also needs coordinator_address, process_id: pass --"),
        (DistributedConfig("localhost", 2, 0), "'localhost'; it must be host:port"),
        (
            DistributedConfig("localhost:1", 2, 2),
            "process_id is 2; with num_processes=2 it must be 0",
        ),
    ],
)
def test_distributed_errors(config, message):
    with pytest.raises(ValueError, match=message):
        initialize(config)


def test_distributed_environment_errors(monkeypatch):
    monkeypatch.setenv("PANGU_JAX_COORDINATOR", "localhost:1")
    monkeypatch.setenv("PANGU_JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="PANGU_JAX_NUM_PROCESSES is 'two'"):
        initialize()


def test_meshes_need_no_flax():
    code = 'import sys, pangu_jax.parallel; assert "flax" not in sys.modules'
    subprocess.run([sys.executable, "-c", code], check=True)
