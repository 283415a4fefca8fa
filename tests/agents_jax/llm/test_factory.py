"""Models by one line, and by a configuration with all that is kept of their calls."""

import dataclasses
import json

import pytest

from agents_jax.llm import (
    EndpointModel,
    GenerateRequest,
    InvalidRequest,
    ModelConfig,
    Prices,
    RecordedModel,
    RecordingError,
    ReplayMiss,
    open_model,
)
from agents_jax.llm.jsonl import read_lines
from agents_jax.llm.local import LocalModel

ask = GenerateRequest.ask


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"capital": "Paris", ".": "what?"}))
    return f"scripted:{path}"


def test_scripted_recorded_replayed(tmp_path, script):
    path, calls = tmp_path / "run.jsonl", tmp_path / "calls.jsonl"
    config = ModelConfig(spec=script, record=str(path), transcript=str(calls))
    with open_model(config) as model:
        assert [a.text for a in model.generate([ask("the capital?"), ask("x")])] == [
            "Paris", "what?",
        ]  # fmt: skip
    assert len(list(read_lines(calls))) == 2
    for spec in (f"replay:{path}", f"replay:{path}#scripted"):
        with open_model(spec) as model:
            assert model.generate([ask("the capital?")])[0].text == "Paris"
            with pytest.raises(ReplayMiss):
                model.generate([ask("new")])


def test_endpoint(server, http, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-1")
    server.respond = [http.chat(usage=(100, 10))]
    config = ModelConfig(
        spec=f"{server.url}#org/name:7b",
        endpoint={"api_key_env": "SOME_KEY", "server": "vllm", "concurrency": 3},
        record=str(tmp_path / "run.jsonl"),
        ledger=str(tmp_path / "ledger.json"),
        prices=Prices(input=1.0, output=2.0),
        budget=5.0,
    )
    assert "sk-1" not in repr(config)
    with open_model(config) as model:
        assert isinstance(model, RecordedModel) and isinstance(model.inner, EndpointModel)
        assert model.inner.config.model == model.name == "org/name:7b"
        assert model.inner.config.concurrency == 3 and "regex" in model.capabilities
        assert model.generate([ask("x")])[0].text == "hello"
        assert model.inner.ledger.cost == pytest.approx(120e-6)
    assert server.requests[0]["headers"]["authorization"] == "Bearer sk-1"
    assert len((tmp_path / "ledger.json").read_text().splitlines()) == 1


def test_a_model_opened_twice_shares_nothing_that_stays_locked(tmp_path, script):
    config = ModelConfig(
        spec=script, record=str(tmp_path / "a.jsonl"), transcript=str(tmp_path / "t.jsonl")
    )
    with open_model(config) as model:
        model.generate([ask("x")])
        other = dataclasses.replace(config, transcript=str(tmp_path / "other.jsonl"))
        with pytest.raises(RecordingError, match="being written"):
            open_model(other)
    for again in (config, other):
        with open_model(again) as model:
            model.generate([ask("x")])


def test_local():
    from tiny_model import make_tokenizer

    made = []

    class Engine:
        model_name, context_length, tokenizer = "tiny", 9, make_tokenizer()

    def make(name, **settings):
        made.append((name, settings))
        return Engine()

    config = ModelConfig(spec="local:some/folder", engine={"weights": "int8"})
    with open_model(config, make_engine=make) as model:
        assert isinstance(model, LocalModel) and model.capabilities.max_context == 9
    assert made == [("some/folder", {"weights": "int8"})]
    with pytest.raises(InvalidRequest, match="'wieghts'.*weights"):
        open_model(ModelConfig(spec="local:x", engine={"wieghts": "int8"}))


@pytest.mark.parametrize(
    "config, words",
    [
        ("smollm2", "local:NAME"),
        ("local:", "local:NAME"),
        ("ftp://host/v1#m", "http://HOST"),
        ("http://host/v1", "names no model"),
        (ModelConfig(spec="http://h/v1#m", endpoint={"timout": 3}), "'timout'.*timeout"),
        (ModelConfig(spec="http://h/v1#m", budget=3.0), "needs prices"),
        (ModelConfig(spec="local:x", ledger="y"), "ledger does not go with"),
        (ModelConfig(spec="local:x", budget=0.0), "budget does not go with"),
        (ModelConfig(spec="replay:x", record="y"), "record does not go with"),
        ("scripted:/does/not/exist", "cannot be read"),
        ("replay:/does/not/exist", "cannot be read"),
    ],
)
def test_what_is_refused(config, words):
    with pytest.raises(ValueError, match=words):
        open_model(config)


def test_a_script_must_be_one(tmp_path):
    path = tmp_path / "s.json"
    path.write_text('["a"]')
    with pytest.raises(InvalidRequest, match="patterns"):
        open_model(f"scripted:{path}")
