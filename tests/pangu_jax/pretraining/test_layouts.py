"""Pre-training divided by hand: the run of one device, resumed and continued on other layouts."""

import dataclasses

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pangu_jax.parallel.layout import Layout, LayoutError
from pangu_jax.pretraining import experiment, placement
from pangu_jax.pretraining.config import HeldOutConfig
from pangu_jax.pretraining.objective import HeldOut
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.signals import StopRequested
from tests.pangu_jax.pretraining.tiny_pretraining import tiny_config

DEEP = Layout(data=2, pipe=2, tensor=2)
LONG = Layout(data=2, context=2, tensor=2, zero=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    tiny = tiny_config(tmp_path_factory.mktemp("texts"), train={"log_every": 1})
    return dataclasses.replace(tiny, held_out=HeldOutConfig(rows=2, layer_statistics=False))


def run(config, workdir, layout, stop_at=None):
    """Trains with a layout on as many of the fake devices as it takes, up to an evaluation."""
    config = dataclasses.replace(config, layout=layout)
    devices = jax.devices()[: layout.devices]
    build, evaluate = placement.layout_mesh, HeldOut.evaluate

    def evaluate_or_stop(self, model, params, step, statistics=None):
        if step == stop_at:
            raise StopRequested
        return evaluate(self, model, params, step, statistics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "layout_mesh", lambda layout: build(layout, devices))
        patch.setattr(HeldOut, "evaluate", evaluate_or_stop)
        code = experiment.run("train", config, workdir, [])
    assert code == 0 or stop_at


def losses(workdir):
    return {
        r["step"]: r["values"]["loss"]
        for r in read_metrics(workdir / "metrics.jsonl")
        if r["kind"] == "train"
    }


def params(config, workdir):
    schedule = config.phase_schedule()
    mesh = experiment.make_mesh(config.train.mesh)
    return experiment._params(config, schedule, mesh, workdir, which="latest")[3]


@pytest.fixture(scope="module")
def one_device(config, tmp_path_factory):
    """The same run with two micro-batches on one device."""
    workdir = tmp_path_factory.mktemp("one")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "make_mesh", lambda config: mesh)
        assert experiment.run("train", config, workdir, []) == 0
    return workdir


@pytest.fixture(scope="module")
def deep(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("deep")
    run(config, workdir, DEEP)
    return workdir


def latest(workdir):
    """(step, every array of the newest checkpoint) without asking for a mesh."""
    store = Checkpoints(workdir / "checkpoints" / "latest", writable=False)
    step = max(store.steps())
    store.close()
    folder = workdir / "checkpoints" / "latest" / str(step)
    with ocp.StandardCheckpointer() as reader:
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        trees = {}
        for item in ("params", "train"):
            target = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
                reader.metadata(folder / item).item_metadata.tree,
            )
            trees[item] = reader.restore(folder / item, target)
    return step, trees


def test_training_equals_one_device(config, one_device, deep):
    got, want = losses(deep), losses(one_device)
    assert sorted(got) == sorted(want) == list(range(1, 9))
    np.testing.assert_allclose([got[s] for s in want], list(want.values()), rtol=2e-5)
    chex.assert_trees_all_close(
        params(config, deep), params(config, one_device), rtol=1e-3, atol=1e-4
    )
    evaluations = [
        [r["values"]["loss"] for r in read_metrics(w / "metrics.jsonl") if r["kind"] == "eval"]
        for w in (deep, one_device)
    ]
    np.testing.assert_allclose(*evaluations, rtol=1e-4)


def test_resumed_equals_uninterrupted(config, deep, tmp_path):
    run(config, tmp_path, DEEP, stop_at=4)
    assert latest(tmp_path)[0] == 4
    run(config, tmp_path, DEEP)
    jax.tree.map(np.testing.assert_array_equal, latest(tmp_path), latest(deep))


def test_another_layout_takes_over_bit_for_bit(config, one_device, tmp_path):
    run(config, tmp_path, DEEP, stop_at=4)
    before = latest(tmp_path)
    # Evaluation at the start sees what was read, through the other layout's order and back.
    other = Layout(pipe=2, virtual_stages=2, tensor=2, zero=3)
    seen = {}
    evaluate = HeldOut.evaluate

    def keep(self, model, params, step, statistics=None):
        seen[step] = jax.device_get(params)
        return evaluate(self, model, params, step, statistics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOut, "evaluate", keep)
        run(config, tmp_path, other)
    jax.tree.map(np.testing.assert_array_equal, seen[4], before[1]["params"])
    got, want = losses(tmp_path), losses(one_device)
    np.testing.assert_allclose([got[s] for s in want], list(want.values()), rtol=2e-5)


def test_context_layout_trains_and_follows_the_same_loss(config, tmp_path):
    # Padding of documents changes the rows, so only the course can be compared.
    run(config, tmp_path / "run", LONG)
    got = losses(tmp_path / "run")
    assert got[8] < got[1] - 0.2


def test_a_layout_that_does_not_fit_is_refused_before_training(config, tmp_path):
    bad = dataclasses.replace(config, layout=Layout(data=3, pipe=2))
    with pytest.raises(LayoutError, match="8 rows.*data=3"):
        experiment.run("train", bad, tmp_path / "run", [])
    assert not (tmp_path / "run").exists()
    bad = dataclasses.replace(config, phase_layouts={"long": DEEP})
    with pytest.raises(LayoutError, match="'long'; the phases are general"):
        experiment.run("train", bad, tmp_path / "run", [])
