"""Metrics files, throughput, progress lines, best tracking, prefetching, signals, cache folder."""

import io
import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from pangu_jax.training import compilation_cache
from pangu_jax.training.early_stopping import BestTracker
from pangu_jax.training.errors import DiskFullError
from pangu_jax.training.metrics_writer import MetricsWriter, read_metrics
from pangu_jax.training.prefetch import Prefetcher
from pangu_jax.training.progress import Progress, Throughput
from pangu_jax.training.signals import StopRequested, StopSignals, check_stop, exit_code


def test_records_beyond_the_restored_step_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(file)
    for step in (5, 10, 15):
        writer.write(step, "train", {"loss": np.float32(step)}, {"unix": 1.0})
        writer.write(step, "eval", {"mse": float("nan")})
    writer.close()
    with open(file, "a") as stream:
        stream.write('{"step": 2')  # a killed process
    MetricsWriter(file, resume_step=10, resume_eval_step=5).close()
    kept = read_metrics(file)
    assert [(r["step"], r["kind"]) for r in kept] == [(5, "train"), (5, "eval"), (10, "train")]
    assert kept[0]["values"] == {"loss": 5.0} and kept[1]["values"] == {"mse": "nan"}
    MetricsWriter(file).close()
    assert file.read_text() == ""


def test_only_the_first_process_writes(tmp_path):
    writer = MetricsWriter(None)
    assert writer.write(1, "train", {"loss": 1.0})["step"] == 1
    writer.flush()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_while_logging(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer._file = open("/dev/full", "w")
    with pytest.raises(DiskFullError, match="metrics.jsonl could not be written.*same command"):
        writer.write(1, "train", {"loss": 1.0})


def test_throughput_leaves_pauses_out():
    now = [0.0]
    meter = Throughput(clock=lambda: now[0])
    meter.start()
    now[0] = 2.0
    meter.stop()
    now[0] = 100.0  # evaluation
    meter.start()
    meter.add({"steps": 6, "examples": 30})
    now[0] = 101.0
    assert meter.rates() == {"steps_per_second": 2.0, "examples_per_second": 10.0}
    meter.reset()
    assert meter.rates() == {}


@pytest.mark.parametrize("mode", ["bar", "plain", "none", "auto"])
def test_progress_output(mode):
    stream = io.StringIO()
    progress = Progress(10, mode=mode, every=0.0, stream=stream)
    progress.update(3, lambda: "loss 1.5")
    progress.say("evaluated [0]")
    progress.close()
    shown = stream.getvalue()
    assert ("evaluated [0]" in shown) == (mode != "none")
    assert ("step 3/10  loss 1.5" in shown) == (mode in ("plain", "auto"))


def test_best_tracker():
    tracker = BestTracker("mse", "min")
    assert [
        tracker.update(step, {"mse": value})
        for step, value in enumerate([3.0, 4.0, float("nan"), 2.0, 2.0])
    ] == [True, False, False, True, False]
    assert (tracker.step, tracker.metrics, tracker.bad_evaluations) == (3, {"mse": 2.0}, 1)
    assert tracker.should_stop(1) and not tracker.should_stop(2) and not tracker.should_stop(None)
    assert BestTracker.from_json(json.loads(json.dumps(tracker.to_json()))) == tracker
    with pytest.raises(
        ValueError,
        match="best_metric is 'mse', but evaluation returns mae, mses. Did you mean 'mses'",
    ):
        tracker.update(6, {"mses": 1.0, "mae": 1.0})


class Counter:
    def __init__(self, end=100):
        self.value, self.end = 0, end

    def __next__(self):
        if self.value >= self.end:
            raise StopIteration
        self.value += 1
        return self.value

    def get_state(self):
        return {"value": self.value}


def test_prefetched_state_belongs_to_its_batch():
    source = Counter(5)
    prefetcher = Prefetcher(source, depth=3)
    deadline = time.monotonic() + 5
    while source.value < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    got = [prefetcher.next() for _ in range(5)]
    assert [(item.batch, item.state["value"]) for item in got] == [(i, i) for i in range(1, 6)]
    for _ in range(2):
        with pytest.raises(StopIteration):
            prefetcher.next()
    prefetcher.close()
    assert not prefetcher._thread.is_alive()


def test_prefetcher_passes_errors_on():
    class Broken:
        def __next__(self):
            raise KeyError("column")

    with pytest.raises(KeyError, match="column"):
        Prefetcher(Broken()).next()


def test_first_signal_asks_and_second_would_kill():
    before = signal.getsignal(signal.SIGTERM)
    check_stop()
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        assert exit_code(signals.received) == 143
        with pytest.raises(StopRequested):
            check_stop()
    assert signal.getsignal(signal.SIGTERM) is before
    with StopSignals() as signals:
        assert signals.received is None


@pytest.mark.parametrize("value, expected", [("off", None), ("0", None), ("folder", "xla-")])
def test_compilation_cache_folder(tmp_path, monkeypatch, value, expected):
    previous = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("PANGU_JAX_CACHE", str(tmp_path / value) if expected else value)
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        folder = compilation_cache.enable_compilation_cache()
        if expected is None:
            assert folder is None and jax.config.jax_compilation_cache_dir is None
        else:
            assert folder.is_dir() and folder.name.startswith(expected)
            assert jax.config.jax_compilation_cache_dir == str(folder)
            # The user's own choice stands.
            assert compilation_cache.enable_compilation_cache() == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", previous)


def test_unwritable_cache_folder_is_only_a_warning(tmp_path, monkeypatch):
    previous = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PANGU_JAX_CACHE", str(tmp_path / "file"))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        with pytest.warns(UserWarning, match="Set PANGU_JAX_CACHE"):
            assert compilation_cache.enable_compilation_cache() is None
    finally:
        jax.config.update("jax_compilation_cache_dir", previous)
