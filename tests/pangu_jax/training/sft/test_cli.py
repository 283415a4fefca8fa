"""Fine-tuning from the command line: a whole run, another mode, its continuation, mistakes."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[4]
CONFIG = "--config=configs/pangu/sft.py:tiny"
CHATS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}]}
    for n in range(20)
]


def launch(*arguments, workdir=None):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    if workdir is not None:
        command.append(f"--workdir={workdir}")
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540
    )


@pytest.fixture
def chats(tmp_path):
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    return file


def test_a_run_on_a_file_of_chats(tmp_path, chats):
    run = tmp_path / "run"
    done = launch(
        CONFIG, f"--config.data.train={chats}", "--config.tune=lora", "--config.train.steps=4",
        workdir=run,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "18 of 18 examples" in done.stdout
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["steps"] == 4 and report["examples"]["held_out"]["kept"] == 2
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert (run / "metrics.jsonl").read_text().count("\n") >= 2


@pytest.mark.slow
def test_a_continued_run_equals_one_in_one_go_and_can_be_evaluated(tmp_path):
    from pangu_jax.weights import load_weights

    for steps in (4, 8):
        done = launch(CONFIG, f"--config.train.steps={steps}", "--config.train.optimizer.schedule="
                      "constant", workdir=tmp_path / "parts")  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "Continuing from step 4 of 8" in done.stderr
    launch(CONFIG, "--config.train.steps=8", "--config.train.optimizer.schedule=constant",
           workdir=tmp_path / "whole")  # fmt: skip
    a, b = (load_weights(tmp_path / name / "model").params for name in ("parts", "whole"))
    np.testing.assert_array_equal(a["embed"]["embedding"], b["embed"]["embedding"])
    shown = launch("--mode=eval", workdir=tmp_path / "parts")
    assert shown.returncode == 0, shown.stderr
    assert "Checkpoint of step 8" in shown.stdout and "perplexity" in shown.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config.data.train=/nowhere.jsonl"], "no file or folder /nowhere.jsonl"),
        (["--config.objectives=dpo"], "Did you mean --config.objective?"),
    ],
)
def test_mistakes_are_one_message(tmp_path, arguments, words):
    done = launch(CONFIG, *arguments, workdir=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
