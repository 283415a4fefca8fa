"""Whole runs from the command line on a random model of three layers."""

import ast
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from agents_jax.tools.bfcl.data import load
from agents_jax.tools.meco import MecoConfig, MecoError, Probe, experiment
from configs.agents.meco import get_config
from pangu_jax.config.resolve import ConfigError, resolve
from pangu_jax.data.wheel import WheelUnavailableError

ROOT = pathlib.Path(__file__).resolve().parents[4]
CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A Hugging Face folder of the engine tests' tiny model."""
    from tiny_model import tiny_model

    from pangu_jax.weights.safetensors_export import export_safetensors

    try:
        load("irrelevance")
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")
    tiny = tiny_model()
    special = dataclasses.replace(tiny.tokenizer.special, chat_template=CHATML)
    folder = tmp_path_factory.mktemp("tiny") / "weights"
    return export_safetensors(
        tiny.config, tiny.params, folder, tokenizer=tiny.tokenizer._replace(special=special)
    )


def launch(workdir, *overrides):
    """The process that a user would start."""
    command = [
        sys.executable, "launch.py", "--config=configs/agents/meco.py:debug",
        f"--workdir={workdir}", *overrides,
    ]  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )


def small(weights):
    """Overrides: characters are tokens here, so texts are short and the context long."""
    return (
        f"--config.model=local:{weights}", "--config.engine.context_length=1536",
        "--config.engine.max_rows=2", "--config.layers=(-3,-2,-1)",
        "--config.primary_layers=(-3,-2)", "--config.data.max_chars=420",
        "--config.contrast.num_queries=4", "--config.contrast.max_tokens=2",
        "--config.agent.max_tokens=4", "--config.sets=('relevance',)",
        "--config.data.sizes.default=20",
    )  # fmt: skip


def test_a_study_without_calls_in_this_process(weights, tmp_path, capsys):
    """The same as below, less what takes most of the time."""
    config = get_config("debug")
    for override in small(weights):
        keys, _, value = override.removeprefix("--config.").partition("=")
        *outer, last = keys.split(".")
        group = functools.reduce(getattr, outer, config)
        group[last] = value if last == "model" else ast.literal_eval(value)
    config.agent.examples = config.overhead_queries = 0
    assert experiment.run("train", config.to_dict(), tmp_path, []) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert list(report["sets"]) == ["relevance"], report["skipped"]
    assert "relevance: 20 examples" in capsys.readouterr().out
    with experiment.open_local(resolve(MecoConfig, config)) as model:
        for name in ("meco.npz", "logistic.npz"):
            Probe.load(tmp_path / "probes" / name).check(model)
    other = config.to_dict() | {"layers": (-2, -1)}
    with pytest.raises(MecoError, match="Use another --workdir"):
        experiment.run("train", other, tmp_path, [])


@pytest.mark.slow
def test_a_whole_run_and_its_repetition(weights, tmp_path):
    first = launch(tmp_path, *small(weights))
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(report["sets"]) == {"relevance"}, report["skipped"]
    for found in report["sets"].values():
        methods = found["methods"]
        assert {"always", "naive", "p_yes", "text:overlap", "meco", "probe: logistic"} <= set(
            methods
        )
        assert methods["always"]["accuracy"] == 0.5 == found["needed"] / found["examples"]
        counts = methods["meco"]["confusion"]
        assert sum(counts.values()) == found["examples"]
    layers = report["by_layer"]["relevance"]["meco"]["auroc"]
    assert report["layers"] == [-3, -2, -1] and len(layers) == 3
    rows = {row["policy"]: row for row in report["agent"]["rows"]}
    assert rows["oracle"]["needless"] == 0 and rows["never"]["calls"] == 0
    assert report["overhead"]["probe_ms"] < report["overhead"]["hidden_state_ms"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| meco |" in text and "## In use" in text
    for key in ("auroc", "accuracy"):
        assert (tmp_path / "report" / f"layers_{key}.png").read_bytes()[1:4] == b"PNG"
    decisions = json.loads((tmp_path / "report" / "decisions.json").read_text())
    assert len(decisions["relevance"]["ids"]) == len(decisions["relevance"]["decided"]["meco"])
    for name in ("meco.npz", "logistic.npz"):
        probe = Probe.load(tmp_path / "probes" / name)
        assert probe.template == "tools" and np.isfinite(probe.direction).all()

    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "states").iterdir()}
    again = launch(tmp_path, *small(weights))
    assert again.returncode == 0, again.stderr
    assert kept == {file: file.stat().st_mtime_ns for file in (tmp_path / "states").iterdir()}
    repeated = json.loads((tmp_path / "report" / "report.json").read_text())
    for name, found in repeated["sets"].items():
        assert found["methods"] == report["sets"][name]["methods"]


def test_an_endpoint_is_refused_in_a_sentence(tmp_path):
    result = launch(tmp_path, "--config.model=http://127.0.0.1:9/v1#x")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "lacks: hidden_states" in result.stderr and "local" in result.stderr


def test_sets_without_their_file_are_skipped_and_the_reason_is_told(weights, tmp_path):
    result = launch(
        tmp_path, *small(weights)[:-2], "--config.sets=('metatool','meca_no_tools')",
        "--config.agent.examples=0",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "metatool: skipped." in result.stdout and "Task1.json" in result.stdout
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["sets"] == {} and set(report["skipped"]) == {"metatool", "meca_no_tools"}


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"sets": ("swap", "swop")}, "'swop'; allowed: .*swap"),
        ({"layers": (1,)}, "negative"),
        ({"contrast": {"wordings": ("x",)}}, "'x'; allowed: pretend, aware"),
        ({"contrast": {"num_queries": 2}}, "num_queries >= 4"),
        ({"folds": 2}, "folds >= 3"),
        ({"orientation": "C"}, "orientation"),
    ],
)
def test_settings_that_make_no_study_are_named(tmp_path, changes, match):
    with pytest.raises((MecoError, ConfigError), match=match):
        experiment.run("train", changes, tmp_path, [])


def test_other_modes_are_named(tmp_path):
    with pytest.raises(ValueError, match="--mode=serve.*use train"):
        experiment.run("serve", {}, tmp_path, [])


def test_without_the_embeddings_the_study_goes_on_and_says_so(monkeypatch, tmp_path, capsys):
    def unavailable(texts):
        raise WheelUnavailableError("wordllama is not to be had here")

    monkeypatch.setattr(experiment.embeddings, "embed", unavailable)
    run = experiment._Run(MecoConfig(), tmp_path)
    run._check_embeddings()
    assert not run.config.embeddings
    assert "wordllama" in run.report["skipped"]["embedding controls"]
    assert "text embeddings: skipped. wordllama" in capsys.readouterr().out
    other = experiment._Run(MecoConfig(embeddings=False), tmp_path)
    other._check_embeddings()  # not asked for: not looked for
    assert not other.report["skipped"]
