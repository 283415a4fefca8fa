"""A whole run with a random model, through the command line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from agents_jax.tools.bfcl.data import load
from agents_jax.tools.toolace_r import experiment
from configs.agents import toolace_r
from pangu_jax.data.wheel import WheelUnavailableError

ROOT = pathlib.Path(__file__).resolve().parents[4]
CONFIG = "--config=configs/agents/toolace_r.py:debug"


def launch(workdir, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "launch.py", f"--workdir={workdir}", *arguments], cwd=ROOT,
        env=environment, capture_output=True, text=True, timeout=540,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    try:
        load("irrelevance")
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")
    workdir = tmp_path_factory.mktemp("run")
    done = launch(workdir, CONFIG)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_goes_through_every_stage(ran):
    workdir, out = ran
    report = json.loads((workdir / "report" / "report.json").read_text())
    names = ["zero_shot", "zero_shot + constrained", "zero_shot + forced", "few_shot", "warm_up",
             "warm_up + adaptive", "toolace_r/round_1",
             "toolace_r/round_1 + constrained"]  # fmt: skip
    assert list(report["systems"])[:8] == names
    assert {"toolace_r/round_1 + adaptive", "toolace_r/round_1 + fixed 1",
            "toolace_r/round_1 + vote"} < set(report["systems"])  # fmt: skip
    assert "toolace_r/round_1: tuning" in report["seconds"]
    for file in ("items.json", "rounds/toolace_r/round_1/selection.json",
                 "rounds/toolace_r/round_1/corpus.jsonl", "evaluation/toolace_r/round_1.json",
                 "answers/warm_up.jsonl", "report/report.md",
                 "tuning/toolace_r/round_1/adapter/adapter_model.safetensors"):  # fmt: skip
        assert (workdir / file).stat().st_size > 0, file
    assert "Apache-2.0" in out and "## Paired comparisons" in out


def test_evaluation_repeats_the_report_without_asking(ran):
    workdir, _ = ran
    before = json.loads((workdir / "report" / "report.json").read_text())
    sizes = {f: f.stat().st_size for f in (workdir / "answers").rglob("*.jsonl")}
    done = launch(workdir, "--mode=eval")
    assert done.returncode == 0, done.stderr
    after = json.loads((workdir / "report" / "report.json").read_text())
    assert {f: f.stat().st_size for f in (workdir / "answers").rglob("*.jsonl")} == sizes
    for key in ("systems", "comparisons", "rounds", "refinement", "vote"):
        assert after[key] == before[key], key


def test_another_configuration_does_not_go_on_in_the_same_place(ran):
    workdir, _ = ran
    done = launch(workdir, CONFIG, "--config.selection.samples=3")
    assert done.returncode == 2 and "selection.samples was 2, now 3" in done.stderr


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="use train or eval"):
        experiment.run("serve", {}, tmp_path, [])


def test_a_model_as_it_is_is_measured_without_tuning(ran, tmp_path):
    """Whatever stands behind agents_jax.llm: here a script that always refuses."""
    script = tmp_path / "script.json"
    script.write_text(json.dumps({".": "None of the functions can be used."}))
    config = toolace_r.get_config("debug").to_dict() | {"model": f"scripted:{script}"}
    assert experiment.run("eval", config, tmp_path / "run", []) == 0
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    names = ["model", "model + constrained", "model + forced", "model + adaptive",
             "model + fixed 1", "model + vote", "few_shot"]  # fmt: skip
    assert list(report["systems"]) == names
    for found in report["systems"].values():
        assert found["total"]["irrelevance"]["rate"] == 1 and found["total"]["calls"]["rate"] == 0
    assert report["refinement"]["model"]["all"]["steps"] == [0, 6] and report["rounds"] == {}
    with pytest.raises(ValueError, match="use --mode=eval"):
        experiment.run("train", config, tmp_path / "run", [])
