"""Checkpoints as models: merged adapters answer as adapters beside the base, and are told apart."""

import dataclasses

import jax
import numpy as np
import pytest

from agents_jax.llm import GenerateRequest
from agents_jax.tools.toolace_r.models import Checkpoint, Models
from pangu_jax.inference import Request, SamplingParams
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine
from pangu_jax.inference.prompts import chat_ids
from pangu_jax.models.lora import Adapter, LoraConfig, fingerprint, init_lora
from pangu_jax.training.sft import SftConfig
from pangu_jax.weights.errors import WeightsError
from pangu_jax.weights.peft import export_peft

SFT = SftConfig(base="tiny", lora=LoraConfig(rank=2, alpha=4.0))
ENGINE = EngineConfig(context_length=128, max_rows=2, page_size=32, prefill_tokens=64)


def adapter(base, seed, scale=0.5):
    """A random adapter that changes what the base says."""
    params = init_lora(base.config, SFT.lora, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(np.float32), params)
    return Adapter("tuned", SFT.lora, params, fingerprint(base.config, base.params), "tiny")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    found = Models(SFT, ENGINE, folder / "answers")
    for seed in (1, 2):
        export_peft(adapter(found.base, seed), found.base.config, folder / f"tuned{seed}")
    return found, folder


def ask(question, **settings):
    return GenerateRequest.ask(question, max_tokens=8, **settings)


def test_merged_weights_answer_as_the_adapter_beside_the_base(models):
    found, folder = models
    engine = Engine(found.base, ENGINE, adapters=[adapter(found.base, 1)])
    requests = [
        Request(
            id=q, prompt_ids=chat_ids(found.base.tokenizer, [{"role": "user", "content": q}]),
            sampling=SamplingParams(max_tokens=8), adapters=(("tuned", 1.0),),
        )
        for q in ("one", "two?")
    ]  # fmt: skip
    beside = [completion.text for completion in engine.generate(requests)]
    with found.open(Checkpoint("merged", (folder / "tuned1",))) as model:
        merged = [r.text for r in model.generate([ask("one"), ask("two?")])]
    with found.open(Checkpoint("base")) as model:
        base = [r.text for r in model.generate([ask("one"), ask("two?")])]
    assert merged == beside != base


def test_folders_add_up_in_their_order(models):
    found, folder = models
    one, two = (adapter(found.base, seed) for seed in (1, 2))
    both = found.load(Checkpoint("both", (folder / "tuned1", folder / "tuned2"))).params
    kernel = np.asarray(found.base.params["layers"]["attn"]["q"]["kernel"])
    for own in (one, two):
        a, b = (np.asarray(own.params["layers"]["attn"]["q"][name]) for name in "ab")
        kernel = kernel + SFT.lora.scale * np.einsum("lir,lrhd->lihd", a, b)
    np.testing.assert_allclose(both["layers"]["attn"]["q"]["kernel"], kernel, rtol=1e-5, atol=1e-5)
    assert found.load(Checkpoint("base")).params is found.base.params


def test_answers_of_other_weights_are_asked_for_anew(models, tmp_path, monkeypatch):
    found, folder = models
    found = Models(SFT, ENGINE, tmp_path / "answers")
    other = tmp_path / "moved"
    (folder / "tuned1").rename(other)
    with found.open(Checkpoint("round/1", (other,))) as model:
        first = model.generate([ask("one")])[0]
        assert not first.cached and model.generate([ask("one")])[0].cached
    other.rename(folder / "tuned1")
    monkeypatch.setattr(found, "load", None)  # what is on record needs no weights
    with found.open(Checkpoint("round/1", (folder / "tuned1",))) as model:
        again = model.generate([ask("one")])[0]  # the same weights elsewhere
        assert again.cached and again.texts == first.texts
    with found.open(Checkpoint("round/1", (folder / "tuned2",))) as model:
        assert model.missing([ask("one")]) == 1


def test_an_adapter_that_is_not_there(models, tmp_path):
    found, _ = models
    with pytest.raises(WeightsError, match="nothing_here"):
        found.load(Checkpoint("x", (tmp_path / "nothing_here",)))


def test_a_fully_tuned_model_replaces_the_base(models, tmp_path):
    from pangu_jax.weights import export_safetensors

    found, _ = models
    params = jax.tree.map(lambda x: x * 1.5, found.base.params)
    export_safetensors(
        found.base.config, params, tmp_path / "model", tokenizer=found.base.tokenizer
    )
    full = Models(dataclasses.replace(SFT, tune="full"), ENGINE, tmp_path / "answers")
    loaded = full.load(Checkpoint("round_1", (tmp_path / "model",)))
    np.testing.assert_allclose(
        loaded.params["layers"]["mlp"]["up"]["kernel"], params["layers"]["mlp"]["up"]["kernel"]
    )
