"""The work directory: lock, config check, run facts."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pangu_jax.training.errors import WorkdirError
from pangu_jax.training.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = {
    "model": {"name": "tiny", "widths": (4, 8)},
    "train": {"steps": 10, "log_every": 5, "optimizer": {"learning_rate": 0.1}},
}


def changed(**train):
    return {**CONFIG, "train": {**CONFIG["train"], **train}}


def test_layout_and_run_info(tmp_path):
    with Workdir.open(tmp_path / "run", CONFIG, seed=3) as workdir:
        assert workdir.read_config()["model"]["widths"] == [4, 8]
    with Workdir.open(tmp_path / "run", CONFIG, seed=3):
        pass
    starts = json.loads((tmp_path / "run" / "run_info.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[0]["seed"] == 3 and starts[0]["versions"]["jax"] and starts[0]["command"]


def test_second_holder_is_refused_and_kill_frees_the_directory(tmp_path):
    code = (
        f"from pangu_jax.training.workdir import Workdir; import time; "
        f'w = Workdir.open({str(tmp_path)!r}, {CONFIG!r}); print("held", flush=True); '
        "time.sleep(100)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(
            WorkdirError,
            match=rf"in use by another process \(pid {holder.pid} on "
            r"host .*another --workdir",
        ):
            Workdir.open(tmp_path, CONFIG)
    finally:
        holder.kill()
        holder.communicate()
    Workdir.open(tmp_path, CONFIG).close()


def test_other_config_is_refused_with_the_keys(tmp_path):
    Workdir.open(tmp_path, CONFIG).close()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(WorkdirError, match="train.optimizer.learning_rate was 0.1, now 0.2"):
        Workdir.open(tmp_path, changed(optimizer={"learning_rate": 0.2}))
    with pytest.raises(WorkdirError, match="train.extra was '-', now 1"):
        Workdir.open(tmp_path, changed(extra=1))
    # A refusal changes nothing and keeps no lock.
    Workdir.open(tmp_path, CONFIG).close()
    Workdir.open(tmp_path, changed(extra=None)).close()  # a newer version's unused setting


def test_a_directory_in_which_nothing_was_computed_takes_the_corrected_config(tmp_path):
    """A first start that failed over a mistyped path must not bind the directory to it."""
    Workdir.open(tmp_path, CONFIG).close()
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "checkpoints" / "latest").mkdir(parents=True)
    other = changed(optimizer={"learning_rate": 0.2})
    with Workdir.open(tmp_path, other) as workdir:
        assert workdir.read_config()["train"]["optimizer"]["learning_rate"] == 0.2
    nested = tmp_path / "models" / "a" / "seed0" / "metrics.jsonl"
    nested.parent.mkdir(parents=True)
    nested.write_text("{}\n")
    with pytest.raises(WorkdirError, match="learning_rate was 0.2, now 0.1"):
        Workdir.open(tmp_path, CONFIG)


def test_steps_may_grow_but_not_fall_behind_the_checkpoint(tmp_path):
    Workdir.open(tmp_path, CONFIG).close()
    Workdir.open(tmp_path, changed(steps=30, log_every=1)).close()
    (tmp_path / "checkpoints" / "latest" / "25").mkdir(parents=True)
    with pytest.raises(WorkdirError, match="train.steps was 30, now 20"):
        Workdir.open(tmp_path, changed(steps=20, log_every=1))
    Workdir.open(tmp_path, changed(steps=26)).close()


def test_checkpoints_without_config_are_foreign(tmp_path):
    (tmp_path / "checkpoints" / "latest" / "5").mkdir(parents=True)
    with pytest.raises(WorkdirError, match="holds checkpoints but no config.json"):
        Workdir.open(tmp_path, CONFIG)


def test_reading_a_directory_that_is_none(tmp_path):
    with pytest.raises(WorkdirError, match="is not a work directory"):
        Workdir(tmp_path).read_config()


def test_path_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot be created.*--workdir"):
        Workdir.open(tmp_path / "file" / "run", CONFIG)
