"""fit: cadences, best checkpoint, early stopping, bad data, sharding."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.parallel import MeshConfig, make_mesh
from pangu_jax.training import (
    DataExhaustedError,
    DiskFullError,
    ForeignCheckpointError,
    LossSums,
    NonFiniteError,
    OptimizerConfig,
    TrainConfig,
    TrainingError,
    fit,
)
from pangu_jax.training.cadence import checkpoint_due, dispatch_size, evaluation_due
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.load import load_params
from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.signals import check_stop

BASE = TrainConfig(
    steps=12,
    log_every=4,
    eval_every=3,
    checkpoint_every=4,
    best_metric="score",
    progress="none",
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.05, b1=0.0),
)


class Batches:
    """Endless (or `end`) batches that depend on their number only, with a resumable iterator."""

    def __init__(self, end=None, rows=8, bad=None, resumable=True):
        self.end, self.rows, self.bad, self.resumable = end, rows, bad, resumable

    def __iter__(self):
        iterator = _Iterator(self)
        return iterator if self.resumable else iter(lambda: next(iterator), object())


class _Iterator:
    def __init__(self, source):
        self.source, self.index = source, 0

    def __next__(self):
        if self.source.end is not None and self.index >= self.source.end:
            raise StopIteration
        rng = np.random.default_rng(self.index)
        x = rng.normal(size=(self.source.rows, 4)).astype(np.float32)
        if self.index == self.source.bad:
            x[0, 0] = np.nan
        self.index += 1
        return {"x": x, "y": x.sum(1)}

    def get_state(self):
        return {"index": self.index}

    def set_state(self, state):
        self.index = state["index"]


def init(key):
    return {"w": nn.LogicallyPartitioned(jax.random.normal(key, (4, 2)), ("embed", "mlp"))}


def loss(params, batch, rng):
    error = (batch["x"] @ params["w"]).sum(1) - batch["y"]
    return LossSums(jnp.sum(error**2), jnp.float32(error.shape[0]))


def run(workdir, config=BASE, dataset=None, **kwargs):
    return fit(
        init_fn=init,
        loss_fn=loss,
        dataset=dataset or Batches(),
        config=config,
        workdir=workdir,
        **kwargs,
    )


def changed(**values):
    return dataclasses.replace(BASE, **values)


def scores(values):
    """An evaluation that returns the given scores in order of step, and counts its calls."""

    def evaluate(params, step):
        evaluate.steps.append(step)
        return {"score": values[step]}

    evaluate.steps = []
    return evaluate


def test_sharded_equals_unsharded_and_float64(tmp_path):
    plain = run(tmp_path / "a", mesh=make_mesh(devices=jax.devices()[:1]))
    sharded = run(tmp_path / "b", changed(mesh=MeshConfig(4, 2), grad_accumulation=2))
    assert sharded.state.params["w"].sharding.spec[1] == "model"
    np.testing.assert_allclose(
        plain.state.params["w"], sharded.state.params["w"], rtol=1e-4, atol=1e-6
    )
    w = np.asarray(jax.random.normal(jax.random.split(jax.random.key(0))[0], (4, 2)), np.float64)
    batches = iter(Batches())
    for _ in range(12):
        batch = next(batches)
        error = (batch["x"] @ w).sum(1) - batch["y"]
        w = w - 0.05 * 2 * np.tile((batch["x"].T @ error / 8)[:, None], 2)
    np.testing.assert_allclose(plain.state.params["w"], w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("per_dispatch", [1, 5])
def test_cadences_do_not_depend_on_the_dispatch(tmp_path, per_dispatch):
    evaluate = scores({3: 1.0, 6: 3.0, 9: 2.0, 12: 2.5})
    counts = []
    result = run(
        tmp_path,
        changed(steps_per_dispatch=per_dispatch),
        evaluate=evaluate,
        describe_batch=lambda b: counts.append(len(b["x"])) or {"examples": 8},
    )
    assert evaluate.steps == [3, 6, 9, 12] and set(counts) == {8}
    assert (result.best_step, result.best_metrics) == (6, {"score": 3.0})
    assert not result.interrupted and not result.stopped_early
    assert [(r["step"], r["kind"]) for r in result.history] == [
        (3, "eval"),
        (4, "train"),
        (6, "eval"),
        (8, "train"),
        (9, "eval"),
        (12, "train"),
        (12, "eval"),
    ]
    assert result.history == read_metrics(tmp_path / "metrics.jsonl")
    assert list((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 12


def test_best_parameters_are_those_of_the_best_step(tmp_path):
    seen = {}

    def evaluate(params, step):
        seen[step] = np.asarray(params["w"]).copy()
        return {"score": {3: 1.0, 6: 3.0, 9: 2.0, 12: 2.5}[step]}

    result = run(tmp_path, evaluate=evaluate)
    step, params = load_params(tmp_path, result.state.params)
    assert step == 6
    np.testing.assert_array_equal(params["w"], seen[6])
    step, params = load_params(tmp_path, result.state.params, which="latest")
    np.testing.assert_array_equal(params["w"], seen[12])
    names = sorted(p.name for p in (tmp_path / "checkpoints" / "best").iterdir())
    assert names == ["6"]


def test_finished_run_returns_at_once_and_can_be_prolonged(tmp_path, capfd):
    evaluate = scores(dict.fromkeys(range(40), 1.0))
    first = run(tmp_path, evaluate=evaluate)
    capfd.readouterr()
    again = run(tmp_path, changed(progress="plain"), evaluate=evaluate)
    assert "already finished: 12 of 12 steps" in capfd.readouterr().err
    assert evaluate.steps == [3, 6, 9, 12]
    np.testing.assert_array_equal(first.state.params["w"], again.state.params["w"])
    assert (again.best_step, again.history) == (3, first.history)
    longer = run(tmp_path, changed(steps=24), evaluate=evaluate)
    straight = run(
        tmp_path / "straight", changed(steps=24), evaluate=scores(dict.fromkeys(range(40), 1.0))
    )
    np.testing.assert_array_equal(longer.state.params["w"], straight.state.params["w"])


@pytest.mark.parametrize("resumable", [True, False])
def test_stop_during_evaluation_evaluates_again_after_resume(tmp_path, resumable):
    values = {3: 1.0, 6: 2.0, 9: 3.0, 12: 4.0}
    calls = []

    def evaluate(params, step):
        calls.append(step)
        if calls == [3, 6]:
            os.kill(os.getpid(), signal.SIGINT)
            check_stop()
        return {"score": values[step]}

    data = Batches(resumable=resumable)
    stopped = run(tmp_path / "a", evaluate=evaluate, dataset=data)
    assert stopped.interrupted and stopped.signal == signal.SIGINT
    assert int(stopped.state.step) == 6 and stopped.best_step == 3
    resumed = run(tmp_path / "a", evaluate=evaluate, dataset=data)
    assert calls == [3, 6, 6, 9, 12]
    straight = run(tmp_path / "b", evaluate=scores(values))
    np.testing.assert_array_equal(resumed.state.params["w"], straight.state.params["w"])
    strip = [
        [(r["step"], r["kind"], r["values"]) for r in h]
        for h in (resumed.history, straight.history)
    ]
    assert strip[0] == strip[1]


def test_early_stopping_survives_a_resume(tmp_path):
    values = {3: 1.0, 6: 5.0, 9: 2.0, 12: 3.0, 15: 4.0, 18: 9.0}
    config = changed(steps=18, early_stopping_patience=3)
    straight = run(tmp_path / "a", config, evaluate=scores(values))
    assert straight.stopped_early and int(straight.state.step) == 15
    assert straight.best_step == 6
    # Stopped by a signal after the second bad evaluation.
    broken = scores(values)

    def evaluate(params, step):
        if step == 15 and not evaluate.resumed:
            raise KeyboardInterrupt
        return broken(params, step)

    evaluate.resumed = False
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", config, evaluate=evaluate)
    evaluate.resumed = True
    resumed = run(tmp_path / "b", config, evaluate=evaluate)
    assert resumed.stopped_early and int(resumed.state.step) == 15 and resumed.best_step == 6
    # Already stopped: nothing more happens, and a larger patience goes on.
    assert run(tmp_path / "b", config, evaluate=evaluate).stopped_early
    longer = run(
        tmp_path / "b", dataclasses.replace(config, early_stopping_patience=4), evaluate=evaluate
    )
    assert longer.best_step == 18 and not longer.stopped_early


@pytest.mark.parametrize("per_dispatch", [1, 4])
def test_nonfinite_batch_stops_with_state_and_batch(tmp_path, per_dispatch):
    config = changed(steps_per_dispatch=per_dispatch, checkpoint_every=100, eval_every=0)
    data = Batches(bad=6)
    with pytest.raises(
        NonFiniteError,
        match=r"stopped at step 6: the loss is nan.*'x' already "
        r"holds NaN.*nan_guard=skip",
    ) as caught:
        run(tmp_path, config, data)
    assert caught.value.step == 6
    with np.load(caught.value.batch_file) as batch:
        assert np.isnan(batch["x"][0, 0]) and batch["y"].shape == (8,)
    # The same command meets the same batch again; leaving it out goes on to the end.
    with pytest.raises(NonFiniteError, match="stopped at step 6"):
        run(tmp_path, config, data)
    result = run(tmp_path, dataclasses.replace(config, nan_guard="skip"), data)
    assert int(result.state.step) == 12 and np.isfinite(result.state.params["w"]).all()
    assert result.history[1]["step"] == 8 and result.history[1]["values"]["skipped"] == 1
    whole = run(tmp_path / "whole", dataclasses.replace(config, nan_guard="skip"), data)
    np.testing.assert_allclose(result.state.params["w"], whole.state.params["w"], rtol=1e-6)


def test_data_that_ends_too_soon(tmp_path):
    with pytest.raises(
        DataExhaustedError,
        match=r"ended after 7 batches, but train.steps is 12; "
        r"repeat .*--config.train.steps to 7",
    ):
        run(tmp_path, dataset=Batches(end=7))


def test_rows_that_do_not_fit_the_mesh(tmp_path):
    with pytest.raises(
        TrainingError,
        match=r"12 rows.*train.mesh.data=8 times "
        r"train.grad_accumulation=1.*multiple of 8",
    ):
        run(tmp_path / "a", dataset=Batches(rows=12))
    with pytest.raises(TrainingError, match="grad_accumulation=2.*multiple of 16"):
        run(tmp_path / "b", changed(grad_accumulation=2))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(
        ForeignCheckpointError,
        match=r"params/w: checkpoint float32\[4,2\], this "
        r"model float32\[4,6\]",
    ):
        fit(
            init_fn=lambda key: {"w": jnp.zeros((4, 6))},
            loss_fn=loss,
            dataset=Batches(),
            config=BASE,
            workdir=tmp_path,
        )


def test_metric_that_evaluation_does_not_return(tmp_path):
    with pytest.raises(ValueError, match="best_metric is 'score', but evaluation returns scores"):
        run(tmp_path, evaluate=lambda params, step: {"scores": 1.0})


def test_resume_on_another_mesh(tmp_path):
    run(tmp_path / "a", changed(steps=8, mesh=MeshConfig(4, 2)))
    moved = run(tmp_path / "a", changed(mesh=MeshConfig(8, 1)))
    straight = run(tmp_path / "b", changed(mesh=MeshConfig(8, 1)))
    np.testing.assert_allclose(moved.state.params["w"], straight.state.params["w"], rtol=1e-5)


def test_bests_of_a_lost_future_are_dropped(tmp_path):
    values = scores({3: 1.0, 6: 2.0, 9: 3.0, 12: 4.0})
    run(tmp_path, changed(steps=6), evaluate=values)
    best = tmp_path / "checkpoints" / "best"
    store = Checkpoints(best, keep=None)
    result = run(tmp_path, changed(steps=6), evaluate=values)
    future = dataclasses.replace(result.state, step=jnp.int32(9))
    store.save(future, extra={}, params_only=True)
    store.wait()
    store.close()
    run(tmp_path, changed(steps=7, eval_every=3), evaluate=scores({7: 0.0}))
    assert sorted(p.name for p in best.iterdir()) == ["6"]


def test_optimizer_state_is_placed_like_its_parameters(tmp_path):
    config = changed(steps=2, mesh=MeshConfig(4, 2), optimizer=OptimizerConfig())
    first = run(tmp_path, config).state
    again = run(tmp_path, dataclasses.replace(config, steps=4)).state
    for state in (first, again):
        assert state.opt_state[0].mu["w"].sharding == state.params["w"].sharding


@given(
    steps=st.integers(1, 60),
    per_dispatch=st.integers(1, 9),
    eval_every=st.integers(0, 12),
    checkpoint_every=st.integers(0, 12),
    data=st.data(),
)
def test_dispatches_keep_every_boundary_wherever_a_run_resumes(
    steps, per_dispatch, eval_every, checkpoint_every, data
):
    config = TrainConfig(
        steps=steps,
        steps_per_dispatch=per_dispatch,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
    )

    def ends(step):
        found = []
        while step < steps:
            step += dispatch_size(config, step)
            found.append(step)
        return found

    whole = ends(0)
    wanted = {
        s
        for s in range(1, steps + 1)
        if evaluation_due(config, s, s - 1) or checkpoint_due(config, s)
    }
    assert whole[-1] == steps and wanted <= set(whole)
    start = data.draw(st.sampled_from(whole))
    assert ends(start) == [s for s in whole if s > start]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"eval_every": -1}, "eval_every is -1; it must be 0 or more"),
        ({"checkpoint_minutes": 0.0}, "checkpoint_minutes is 0.0; it must be above 0, or None"),
        ({"best_mode": "maximum"}, "best_mode is 'maximum'; allowed are max, min"),
        ({"nan_guard": True}, "nan_guard is True; allowed are stop, skip, off"),
    ],
)
def test_config_errors(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_full_disk_stops_cleanly_and_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if (
        os.geteuid()
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        filler = disk / "filler"

        def evaluate(params, step):
            if step == 6 and not filler.exists():
                with contextlib.suppress(OSError), open(filler, "wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()
            return {"score": float(step)}

        with pytest.raises(DiskFullError, match="disk is full.*same command"):
            run(disk / "run", evaluate=evaluate)
        os.truncate(filler, 0)
        resumed = run(disk / "run", evaluate=evaluate)
        straight = run(tmp_path / "straight", evaluate=scores({s: float(s) for s in range(13)}))
        np.testing.assert_array_equal(resumed.state.params["w"], straight.state.params["w"])
        assert [r["values"] for r in resumed.history] == [r["values"] for r in straight.history]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
