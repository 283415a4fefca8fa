"""Checkpoints: other meshes, damage, foreign models, full disks."""

import contextlib
import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pangu_jax.parallel import MeshConfig, make_mesh
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.errors import (
    CheckpointError,
    CorruptCheckpointError,
    DiskFullError,
    ForeignCheckpointError,
)
from pangu_jax.training.load import load_params
from pangu_jax.training.state import TrainState, create_state

SPECS = {"table": P("model", None), "bias": P()}


def make_state(mesh, step=1, rows=8, optimizer=None):
    optimizer = optimizer or optax.adam(1e-3)

    def init(key):
        return {"table": jax.random.normal(key, (rows, 4)), "bias": jnp.zeros(4, jnp.bfloat16)}

    state = create_state(init, optimizer, jax.random.key(step))

    def place(path, x):
        name = path[-1].key if hasattr(path[-1], "key") else None
        return jax.device_put(x, NamedSharding(mesh, SPECS.get(name, P())))

    state = jax.tree_util.tree_map_with_path(place, state)
    return TrainState(
        jax.device_put(jnp.int32(step), NamedSharding(mesh, P())),
        state.params,
        state.opt_state,
        state.rng,
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@contextlib.contextmanager
def opened(folder, **kwargs):
    store = Checkpoints(folder, **kwargs)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def saved(tmp_path):
    mesh = make_mesh(MeshConfig(4, 2))
    with opened(tmp_path / "latest") as store:
        for step in (1, 2):
            store.save(make_state(mesh, step), extra={"note": step / 3}, data={"next_index": step})
        store.wait()
    return tmp_path / "latest"


@pytest.mark.parametrize("sizes", [(4, 2), (2, 4), (8, 1)])
def test_restore_on_any_mesh(saved, sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    with opened(saved) as store:
        restored = store.restore(make_state(mesh, 99))
    assert (restored.step, restored.data, restored.extra["note"]) == (2, {"next_index": 2}, 2 / 3)
    assert_equal(restored.state, make_state(mesh, 2))
    assert restored.state.params["table"].sharding.mesh == mesh
    assert restored.state.params["table"].addressable_shards[0].data.shape[0] == 8 // sizes[1]


def test_keeps_the_newest_and_saves_a_step_once(tmp_path):
    mesh = make_mesh(MeshConfig(8, 1))
    with opened(tmp_path / "c", keep=2) as store:
        for step in (1, 2, 3, 3):
            store.save(make_state(mesh, step), extra={"n": step})
        store.wait()
        assert store.steps() == [2, 3]
        store.prune(above=2)
        assert store.steps() == [2]
        store.prune(below=5)
        assert store.steps() == []


def test_bytes_as_data_state_and_parameters_only(tmp_path):
    state = make_state(make_mesh(MeshConfig(8, 1)))
    with opened(tmp_path / "checkpoints" / "best", keep=None) as store:
        store.save(state, extra={}, params_only=True)
        store.wait()
        with pytest.raises(CheckpointError, match="parameters only"):
            store.restore(state)
    step, params = load_params(tmp_path, state.params)
    assert step == 1
    assert_equal(params, state.params)
    with opened(tmp_path / "checkpoints" / "latest") as store:
        store.save(state, extra={}, data=b"\x00place")
        assert store.restore(state).data == b"\x00place"


def test_nothing_to_load(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint under .*best or latest"):
        load_params(tmp_path, {})
    with pytest.raises(CheckpointError, match="which is 'newest'; allowed are auto, best, latest"):
        load_params(tmp_path, {}, which="newest")
    with opened(tmp_path / "c") as store, pytest.raises(CheckpointError, match="train first"):
        store.restore(make_state(make_mesh()))


def test_step_that_is_not_there(saved):
    with (
        opened(saved) as store,
        pytest.raises(CheckpointError, match="no checkpoint of step 7 .*there are 1, 2"),
    ):
        store.restore(make_state(make_mesh()), step=7)


def _files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "damage", ["params", "train", "extra", "data", "truncate", "flip", "number"]
)
def test_damage_is_named_with_the_way_out(saved, damage):
    step = saved / "2"
    if damage in ("truncate", "flip"):
        file = max(
            (p for p in _files(step / "params") if "/d/" in str(p)), key=lambda p: p.stat().st_size
        )
        content = bytearray(file.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 0xFF
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    elif damage == "number":
        file = step / "extra" / "metadata"
        file.write_text(file.read_text().replace('"note": 0.6', '"note": 0.7'))
    elif damage in ("params", "train"):
        shutil.rmtree(step / damage)
    else:
        for file in _files(step / damage):
            if file.name == "metadata":
                file.write_text('{"half a')
    state = make_state(make_mesh())
    with opened(saved) as store:
        with pytest.raises(CorruptCheckpointError) as caught:
            store.restore(state)
        assert str(step) in str(caught.value) and "continues from step 1" in str(caught.value)
        with opened(saved, writable=False) as reading:
            with pytest.raises(CorruptCheckpointError, match="continues from step 1"):
                reading.restore(state)
        shutil.rmtree(step)
    with opened(saved) as store:
        assert_equal(store.restore(state).state, make_state(make_mesh(), 1))


def test_foreign_checkpoint_names_the_differences(saved):
    mesh = make_mesh()
    with opened(saved) as store:
        with pytest.raises(
            ForeignCheckpointError,
            match=r"params/table: checkpoint float32\[8,4\], this model "
            r"float32\[16,4\]",
        ):
            store.restore(make_state(mesh, rows=16))
        with pytest.raises(ForeignCheckpointError, match=r"train/opt_state/.*has none"):
            store.restore(make_state(mesh, optimizer=optax.sgd(1.0)))


def test_leftovers_of_a_killed_save_are_removed(saved):
    stale = saved / "3.orbax-checkpoint-tmp"
    stale.mkdir()
    (stale / "part").write_text("x")
    with opened(saved, writable=False) as store:
        assert store.steps() == [1, 2] and stale.exists()
    with opened(saved) as store:
        assert store.steps() == [1, 2] and not stale.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        os.geteuid()
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("estimate", [True, False])
def test_full_disk_keeps_the_last_checkpoint(small_disk, estimate, monkeypatch):
    mesh = make_mesh(MeshConfig(8, 1))
    small = make_state(mesh, 1, rows=64)
    with opened(small_disk / "latest") as store:
        store.save(small, extra={})
        store.wait()
        filler = pathlib.Path(small_disk / "filler")
        with contextlib.suppress(OSError), open(filler, "wb") as file:
            file.write(np.random.default_rng(0).bytes(700_000))
        if not estimate:
            # As if another program took the room while the save was on its way.
            monkeypatch.setattr(store, "_check_room", lambda step, needed: None)
        with pytest.raises(DiskFullError, match="disk is full.*step 1, is intact.*same command"):
            store.save(make_state(mesh, 2, rows=20_000), extra={})
            store.wait()
    filler.unlink()
    with opened(small_disk / "latest") as store:
        assert store.steps() == [1]
        assert_equal(store.restore(small).state, small)
        store.save(make_state(mesh, 2, rows=64), extra={})
        store.wait()
        assert store.steps() == [1, 2]


def test_full_disk_reported_by_the_system(saved, monkeypatch):
    state = make_state(make_mesh(), 3)
    with opened(saved) as store:

        def fail(*args, **kwargs):
            raise ValueError("write failed") from OSError(28, "No space left on device")

        monkeypatch.setattr(store._manager, "save", fail)
        with pytest.raises(DiskFullError, match="checkpoint of step 3 .* needs about .*step 2, is"):
            store.save(state, extra={})
