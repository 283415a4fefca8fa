"""Pre-training end to end on a few generated documents: phases, resume, report, modes, mistakes."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.data.text import CorpusConfig, Mixture, ShardConfig, SourceConfig
from pangu_jax.data.tokenizer import BpeConfig
from pangu_jax.models import Decoder, preset
from pangu_jax.pretraining import corpus as corpus_module
from pangu_jax.pretraining import experiment, placement
from pangu_jax.pretraining.config import HeldOutConfig, PretrainConfig, ScheduleConfig
from pangu_jax.pretraining.corpus import (
    PretrainError,
    check_corpus,
    keep_to_corpus,
    of_the_run,
    open_corpus,
)
from pangu_jax.pretraining.layer_statistics import read_statistics
from pangu_jax.pretraining.objective import HeldOut
from pangu_jax.pretraining.sampling import sample_tokens
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.config import TrainConfig
from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.optimizer import OptimizerConfig
from pangu_jax.training.signals import StopRequested
from pangu_jax.training.workdir import Workdir

WORDS = "the model reads a row of tokens and learns which one comes next in every document".split()


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Phases of one row cannot be divided over the eight devices of the tests."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (experiment, placement):
            patch.setattr(module, "make_mesh", lambda config: mesh)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for domain in ("english", "code"):
        lines = []
        for _ in range(60):
            text = " ".join(rng.choice(WORDS, 60))
            lines.append(json.dumps({"text": text if domain == "english" else f"def {text}:"}))
        (folder / f"{domain}.jsonl").write_text("\n".join(lines))
    corpus = CorpusConfig(
        sources=tuple(
            SourceConfig(kind="jsonl", path=str(folder / f"{d}.jsonl"), domain=d)
            for d in ("english", "code")
        ),
        quotas={"english": 0.5, "code": 0.5},
        bpe=BpeConfig(vocab_size=300),
        shards=ShardConfig(held_out=0.2),
    )
    weights = Mixture({"english": 0.5, "code": 0.25, "math": 0.25})
    return PretrainConfig(
        model=preset("debug", vocab_size=300, norm_eps=1e-6),
        corpus=corpus,
        corpus_folder=str(folder / "corpus"),
        mixtures={name: weights for name in ("general", "reasoning", "annealing")},
        schedule=ScheduleConfig(
            kind="pangu_ultra", tokens=6000, seq_len=16, batch_rows=8, learning_rate=1e-2,
            warmup_fraction=0.1,
        ),
        held_out=HeldOutConfig(rows=2),
        train=TrainConfig(
            log_every=4, eval_every=8, checkpoint_every=8, best_metric="loss", best_mode="min",
            progress="none", quick_compile=True,
            optimizer=OptimizerConfig(b2=0.95, weight_decay=0.1, clip_norm=1.0),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert experiment.run("train", config, workdir, []) == 0
    return workdir


def final_params(config, workdir):
    schedule = config.phase_schedule()
    mesh = experiment.make_mesh(config.train.mesh)
    _, _, step, params = experiment._params(config, schedule, mesh, workdir, which="latest")
    return step, params


def test_phases_follow_one_another_and_the_loss_falls(config, trained):
    schedule = config.phase_schedule()
    records = [r for r in read_metrics(trained / "metrics.jsonl") if r["kind"] == "train"]
    assert records[-1]["step"] == schedule.total_steps
    for record in records:
        want = schedule.learning_rate(record["step"] - 1)
        assert record["values"]["learning_rate"] == pytest.approx(want, rel=1e-4)
    assert records[-1]["values"]["loss"] < records[0]["values"]["loss"] - 0.5
    assert records[-1]["values"]["loss_spikes"] == 0
    statistics = read_statistics(trained / "layer_statistics.jsonl")
    layers = config.model.num_layers
    gains = statistics[-1]["gains"]
    assert set(gains) == {"attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm"}
    assert len(gains["attn_norm"]["mean"]) == layers
    assert len(statistics[-1]["activations"]["mlp"]["top1"]) == layers
    events = b"".join(p.read_bytes() for p in (trained / "tensorboard" / "layers").iterdir())
    for name in (b"gains/post_mlp_norm_mean/layer_00", b"activations/residual_top1/layer_01"):
        assert name in events


def test_the_report_names_every_phase_and_domain(config, trained):
    text = (trained / "report" / "report.md").read_text()
    for phase in config.phase_schedule().phases:
        assert f"| {phase.name} |" in text
    for needle in ("| english |", "| code |", "loss.png", "gain_post_attn_norm_mean.png",
                   "gain_mlp_norm_std.png", "Prompt: ", "| domain | quota | owned |"):  # fmt: skip
        assert needle in text
    for image in ("loss.png", "perplexity.png", "activation_residual_top1.png",
                  "activation_mlp_std.png", "gain_post_mlp_norm_std.png"):  # fmt: skip
        assert (trained / "report" / image).stat().st_size > 2000


@pytest.mark.parametrize("stop_at", [pytest.param(8, marks=pytest.mark.slow), 24])
def test_interrupted_and_resumed_equals_uninterrupted(config, trained, tmp_path, monkeypatch,
                                                      stop_at):  # fmt: skip
    whole = HeldOut.evaluate

    def stop(self, model, params, step, statistics=None):
        if step == stop_at:
            raise StopRequested
        return whole(self, model, params, step, statistics)

    monkeypatch.setattr(HeldOut, "evaluate", stop)
    experiment.run("train", config, tmp_path, [])
    assert max(Checkpoints(tmp_path / "checkpoints" / "latest", writable=False).steps()) == stop_at
    monkeypatch.setattr(HeldOut, "evaluate", whole)
    assert experiment.run("train", config, tmp_path, []) == 0
    step, resumed = final_params(config, tmp_path)
    want_step, want = final_params(config, trained)
    assert step == want_step
    jax.tree.map(np.testing.assert_array_equal, resumed, want)
    strip = [{k: r[k] for k in ("step", "kind", "values")} for r in
             read_metrics(tmp_path / "metrics.jsonl")]  # fmt: skip
    assert strip == [{k: r[k] for k in ("step", "kind", "values")} for r in
                     read_metrics(trained / "metrics.jsonl")]  # fmt: skip


def test_eval_and_generate_take_the_checkpoint(config, trained, capsys):
    assert experiment.run("eval", config, trained, []) == 0
    out = capsys.readouterr().out
    assert "bits_per_byte/english" in out
    # The best step lies in a late phase, whose RoPE base is not the configuration's.
    step = int(re.search(r"Checkpoint of step ([\d,]+)", out)[1].replace(",", ""))
    assert config.phase_schedule().phase_at(step - 1) > 0
    (recorded,) = (r["values"]["loss"] for r in read_metrics(trained / "metrics.jsonl")
                   if r["kind"] == "eval" and r["step"] == step)  # fmt: skip
    assert float(re.search(r"loss +([\d.]+)", out)[1]) == pytest.approx(recorded, abs=6e-5)
    changed = dataclasses.replace(
        config, generate=dataclasses.replace(config.generate, prompt="the model", max_tokens=8)
    )
    assert experiment.run("generate", changed, trained, []) == 0
    first = capsys.readouterr().out
    assert "the model" in first
    experiment.run("generate", changed, trained, [])
    assert capsys.readouterr().out == first
    longer = dataclasses.replace(changed.generate, max_tokens=10_000)
    with pytest.raises(PretrainError, match=r"max_tokens=10000 are more than the \d+ tokens"):
        experiment.run("generate", dataclasses.replace(config, generate=longer), trained, [])


def test_changed_files_make_another_corpus(config, tmp_path, monkeypatch):
    """The settings name a relative path; what lies there decides."""
    source = dataclasses.replace(config.corpus.sources[0], path="texts.jsonl")
    corpus = dataclasses.replace(config.corpus, sources=(source,), quotas={"english": 1.0})
    named = dataclasses.replace(config, corpus=corpus, corpus_folder=None)
    folders = set()
    for place, text in (("a", "one"), ("b", "one"), ("a", "other"), ("a", "other")):
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        if not pathlib.Path("texts.jsonl").exists() or text == "other":
            pathlib.Path("texts.jsonl").write_text(text)
            os.utime("texts.jsonl", (1000, 1000))
        folders.add(corpus_module._default_folder(named))
    assert len(folders) == 3
    built_in = dataclasses.replace(source, kind="stdlib", path="", domain="code")
    corpus = dataclasses.replace(corpus, sources=(built_in,), quotas={"code": 1.0})
    named = dataclasses.replace(named, corpus=corpus)
    here = corpus_module._default_folder(named)
    monkeypatch.chdir(tmp_path / "b")
    assert corpus_module._default_folder(named) == here


def test_a_corpus_that_is_not_the_run_s_is_refused(config, trained, tmp_path):
    """The settings may be the same while the text, and so the tokens, are others."""
    noted = json.loads((trained / "corpus.json").read_text())
    assert (trained / "tokenizer.json").read_bytes() == (
        pathlib.Path(noted["folder"]) / "tokenizer.json"
    ).read_bytes()
    rng = np.random.default_rng(1)
    texts = (" ".join(rng.choice(["another", "text", "about", *WORDS], 60)) for _ in range(60))
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (tmp_path / "other.jsonl").write_text(lines)
    sources = tuple(
        dataclasses.replace(source, path=str(tmp_path / "other.jsonl"))
        for source in config.corpus.sources[:1]
    )
    corpus = dataclasses.replace(config.corpus, sources=sources, quotas={"english": 1.0})
    other = dataclasses.replace(config, corpus=corpus, corpus_folder=str(tmp_path / "corpus"))
    schedule = config.phase_schedule()
    opened = open_corpus(other, schedule)
    with pytest.raises(PretrainError, match="tokenizer of the corpus .* of the run in .*not the"):
        experiment.run("generate", other, trained, [])
    with Workdir.open(trained, config) as held, pytest.raises(PretrainError, match="tokenizer"):
        keep_to_corpus(opened, held)
    keep_to_corpus(open_corpus(config, schedule), Workdir(trained))
    # Without a folder it is the run's own corpus, whatever its text has become meanwhile.
    unnamed = dataclasses.replace(other, corpus_folder=None)
    assert of_the_run(unnamed, trained).corpus_folder == noted["folder"]
    assert of_the_run(other, trained) == other and of_the_run(unnamed, tmp_path) == unnamed
    # A directory in which nothing was trained takes the corpus that it is given.
    for source in (opened, open_corpus(config, schedule)):
        keep_to_corpus(source, Workdir(tmp_path))
    check_corpus(source, tmp_path, documents=True)
    # Another text with the same tokenizer: fine to generate with, not to train on.
    with monkeypatch_identity(source, documents_sha256="0" * 64):
        check_corpus(source, tmp_path)
        with pytest.raises(PretrainError, match="training documents of the corpus"):
            check_corpus(source, tmp_path, documents=True)


@contextlib.contextmanager
def monkeypatch_identity(corpus, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(corpus.__dict__, "identity", corpus.identity | changes)
        yield


def test_greedy_sampling_equals_the_full_forward_pass(config):
    model = Decoder(config.model)
    init = jax.jit(lambda key: nn.unbox(model.init(key, jnp.zeros((1, 4), jnp.int32))["params"]))
    params = jax.tree.map(lambda x: 3.0 * x, init(jax.random.key(1)))
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    prompt, want = [5, 17, 200], []
    for _ in range(6):
        known = prompt + want
        row = jnp.asarray([known + [0] * (10 - len(known))], jnp.int32)  # causal: one shape
        want.append(int(jnp.argmax(forward(row)[0, len(known) - 1])))
    got = sample_tokens(config.model, params, prompt, max_tokens=6, eod_id=-1, temperature=0.0)
    assert got == want
    stop = want[3]
    got = sample_tokens(config.model, params, prompt, max_tokens=6, eod_id=stop, temperature=0.0)
    assert got == want[: want.index(stop)]


def test_mistakes_are_named(config, tmp_path):
    small = dataclasses.replace(config, model=preset("debug", vocab_size=100))
    schedule = config.phase_schedule()
    with pytest.raises(PretrainError, match="has 300 tokens.*vocab_size=100"):
        open_corpus(small, schedule)
    nothing = dataclasses.replace(config, mixtures={"general": config.mixtures["general"]})
    with pytest.raises(PretrainError, match="mixture 'reasoning'"):
        open_corpus(nothing, schedule)
    typo = dataclasses.replace(config.mixtures["annealing"], weights={"englsh": 1.0})
    typo = dataclasses.replace(config, mixtures=config.mixtures | {"annealing": typo})
    with pytest.raises(
        PretrainError, match="annealing.weights: .*'englsh'.*Did you mean 'english'"
    ):
        open_corpus(typo, schedule)
    with pytest.raises(ValueError, match="--mode=predict"):
        experiment.run("predict", config, tmp_path, [])
    with pytest.raises(ValueError, match="no tokens"):
        sample_tokens(config.model, {}, [], max_tokens=2, eod_id=0)
    with pytest.raises(ValueError, match="ends at 299"):
        sample_tokens(config.model, {}, [300], max_tokens=2, eod_id=0)


def test_the_parts_of_the_mixture_that_are_missing_are_said(config):
    corpus = open_corpus(config, config.phase_schedule())
    assert corpus.missing["general"] == ["math"]
    assert corpus.mixtures["general"].weights == pytest.approx({"english": 2 / 3, "code": 1 / 3})
