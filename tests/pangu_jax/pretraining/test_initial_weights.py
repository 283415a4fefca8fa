"""A checkpoint exported, read again, run by the engine, and trained further."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.data.tokenizer import BpeConfig, load_tokenizer
from pangu_jax.inference import Request, SamplingParams
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine
from pangu_jax.models import Decoder, preset
from pangu_jax.parallel.layout import Layout
from pangu_jax.pretraining import experiment, placement
from pangu_jax.pretraining.comparison import ComparisonConfig
from pangu_jax.pretraining.config import (
    ExportConfig,
    ScheduleConfig,
)
from pangu_jax.pretraining.corpus import PretrainError
from pangu_jax.pretraining.initial_weights import initial_params, with_initial_weights
from pangu_jax.pretraining.objective import HeldOut
from pangu_jax.pretraining.sampling import sample_tokens
from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.signals import StopRequested
from pangu_jax.weights import WeightsError, load_weights
from tests.pangu_jax.pretraining.tiny_pretraining import on_one_device, tiny_config


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with on_one_device() as mesh:
        yield mesh


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def config(texts):
    # Another base than the default: it has to come through.
    return tiny_config(texts, model={"rope_base": 20_000.0})


@pytest.fixture(scope="module")
def exported(config, tmp_path_factory):
    """(work directory, folder of its exported best checkpoint)."""
    workdir = tmp_path_factory.mktemp("first")
    assert experiment.run("train", config, workdir, []) == 0
    assert experiment.run("export", config, workdir, []) == 0
    return workdir, workdir / "model"


@pytest.fixture(scope="module")
def further(config, exported, texts):
    """A run that goes on from the export, with sizes that the weights have to replace."""
    return dataclasses.replace(
        config,
        initial_weights=str(exported[1]),
        model=preset("debug", vocab_size=77, num_layers=5, loss_chunk=8),
        corpus_folder=str(texts / "second"),
    )


def checkpoint(config, workdir, mesh):
    _, model, step, params = experiment._params(config, config.phase_schedule(), mesh, workdir)
    return model, step, params


def test_an_export_is_the_checkpoint(config, exported, one_device):
    workdir, folder = exported
    model, _, params = checkpoint(config, workdir, one_device)
    loaded = load_weights(folder)
    assert loaded.config.rope_base == model.rope_base == 20_000.0
    tokens = jnp.arange(24).reshape(2, 12) * 7 % 300
    np.testing.assert_array_equal(
        Decoder(loaded.config).apply({"params": loaded.params}, tokens),
        Decoder(dataclasses.replace(model, dtype="float32")).apply({"params": params}, tokens),
    )
    ours = load_tokenizer(texts_tokenizer(config))
    assert (
        loaded.tokenizer.tokenizer.encode("every document").ids == ours.encode("every document").ids
    )
    assert loaded.tokenizer.special.eos == ours.token_to_id("<|eod|>")
    # Special tokens in a text are one again for whoever reads the export.
    assert loaded.tokenizer.tokenizer.encode("<|eod|>").ids == [ours.token_to_id("<|eod|>")]
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 16


def texts_tokenizer(config):
    return f"{config.corpus_folder}/tokenizer.json"


def test_the_engine_says_what_the_checkpoint_says(config, exported, one_device):
    workdir, folder = exported
    model, _, params = checkpoint(config, workdir, one_device)
    loaded = load_weights(folder)
    prompt = loaded.tokenizer.tokenizer.encode("the model reads").ids
    want = sample_tokens(
        model, params, prompt, max_tokens=6, eod_id=loaded.tokenizer.special.eos, temperature=0.0
    )
    engine = Engine(loaded, EngineConfig(context_length=64, max_rows=1, page_size=8))
    greedy = SamplingParams(max_tokens=6, temperature=0.0)
    [answer] = engine.generate([Request(id="a", prompt_ids=tuple(prompt), sampling=greedy)])
    assert list(answer.token_ids) == want


def test_a_run_goes_on_from_an_export(further, config, exported, one_device, tmp_path, capsys):
    workdir, folder = exported
    first = experiment.run("train", further, tmp_path, [])
    assert first == 0
    assert f"starting from {folder}" in capsys.readouterr().out
    begun = json.loads((tmp_path / "config.json").read_text())
    assert (begun["model"]["num_layers"], begun["model"]["vocab_size"]) == (2, 300)
    assert begun["model"]["loss_chunk"] == 8  # how it is computed stays the run's choice
    # Same tokenizer, same documents, same parameters: the values of the first run's best.
    before = json.loads((tmp_path / "before.json").read_text())
    _, step, _ = checkpoint(config, workdir, one_device)
    best = next(
        r["values"]
        for r in read_metrics(workdir / "metrics.jsonl")
        if r["kind"] == "eval" and r["step"] == step
    )
    assert before == pytest.approx(best, rel=1e-5)
    records = read_metrics(tmp_path / "metrics.jsonl")
    losses = [r["values"]["loss"] for r in records if r["kind"] == "train"]
    assert losses[-1] < before["loss"]
    assert "| perplexity before |" in (tmp_path / "report" / "report.md").read_text()


def test_once_begun_the_weights_are_needed_no_more(further, exported, tmp_path, capsys):
    folder = tmp_path / "weights"
    shutil.copytree(exported[1], folder)
    config = dataclasses.replace(further, initial_weights=str(folder))
    whole = tmp_path / "whole"
    assert experiment.run("train", config, whole, []) == 0
    evaluate = HeldOut.evaluate

    def stop(self, model, params, step, statistics=None):
        if step == 4:
            raise StopRequested
        return evaluate(self, model, params, step, statistics)

    halves = tmp_path / "halves"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOut, "evaluate", stop)
        assert experiment.run("train", config, halves, []) != 0
    shutil.rmtree(folder)
    assert experiment.run("train", config, halves, []) == 0
    got, want = (
        [(r["step"], r["values"]) for r in read_metrics(w / "metrics.jsonl")]
        for w in (halves, whole)
    )
    assert got == want
    capsys.readouterr()
    assert experiment.run("eval", config, halves, []) == 0
    assert experiment.run("export", config, halves, []) == 0
    assert load_weights(halves / "model").config.num_layers == 2


def test_a_divided_run_starts_from_the_same_values(further, tmp_path):
    layout = Layout(pipe=2, tensor=2)
    build = placement.layout_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            placement, "layout_mesh", lambda layout: build(layout, jax.devices()[: layout.devices])
        )
        divided = dataclasses.replace(further, layout=layout)
        assert experiment.run("train", divided, tmp_path / "divided", []) == 0
    assert experiment.run("train", further, tmp_path / "one", []) == 0
    got, want = (
        [r["values"]["loss"] for r in read_metrics(tmp_path / w / "metrics.jsonl")]
        for w in ("divided", "one")
    )
    np.testing.assert_allclose(got, want, rtol=2e-4)


def test_parameters_start_in_float32(further, exported, one_device, tmp_path):
    half = dataclasses.replace(
        further, export=ExportConfig(folder=str(tmp_path / "half"), dtype="bfloat16")
    )
    workdir, _ = exported
    original = dataclasses.replace(
        half, initial_weights="", model=preset("debug", vocab_size=300, rope_base=20_000.0),
        corpus_folder=str(further.corpus_folder).replace("second", "corpus"),
    )  # fmt: skip
    assert experiment.run("export", original, workdir, []) == 0
    config = dataclasses.replace(further, initial_weights=str(tmp_path / "half"))
    with jax.set_mesh(one_device):
        params = initial_params(config, one_device)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert load_weights(tmp_path / "half").config.dtype == "bfloat16"


def test_a_base_for_longer_rows(further, tmp_path):
    schedule = dataclasses.replace(further.schedule, rope_base=80_000.0)
    config = with_initial_weights(dataclasses.replace(further, schedule=schedule), tmp_path)
    assert config.phase_schedule().phases[0].rope_base == 80_000.0
    assert with_initial_weights(further, tmp_path).phase_schedule().phases[0].rope_base == 20_000.0
    with pytest.raises(ValueError, match="schedule.rope_base=.*kind='single'"):
        ScheduleConfig(kind="pangu_ultra", rope_base=1e5)


def test_mistakes_are_named(further, config, exported, tmp_path):
    workdir, folder = exported
    with pytest.raises(WeightsError, match="There is no file or directory .*nowhere"):
        with_initial_weights(dataclasses.replace(further, initial_weights="nowhere"), tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(PretrainError, match="bare carries no tokenizer"):
        with_initial_weights(dataclasses.replace(further, initial_weights=str(bare)), tmp_path)
    endless = tmp_path / "endless"
    shutil.copytree(folder, endless)
    (endless / "tokenizer_config.json").write_text("{}")
    shards = dataclasses.replace(further.corpus.shards, eod_token="</s>")
    corpus = dataclasses.replace(
        further.corpus, shards=shards, bpe=BpeConfig(vocab_size=300, special_tokens=("</s>",),
                                                     eod_token="</s>"),
    )  # fmt: skip
    with pytest.raises(PretrainError, match="no token '</s>' and names no end of text"):
        with_initial_weights(
            dataclasses.replace(further, initial_weights=str(endless), corpus=corpus), tmp_path
        )
    with pytest.raises(WeightsError, match="exists and is not an empty folder"):
        experiment.run("export", config, workdir, [])
    with pytest.raises(ValueError, match="initial_weights"):
        ComparisonConfig(base=further, runs={"a": {}})
