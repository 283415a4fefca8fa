"""generate, chat and benchmark as a user runs them, on a tiny model in a Hugging Face folder."""

import dataclasses
import io
import json

import pytest
from tiny_model import tiny_model

from pangu_jax.inference import RequestError, SamplingParams
from pangu_jax.inference.chat import Conversation, chat
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine
from pangu_jax.inference.experiment import run
from pangu_jax.weights import export_safetensors
from pangu_jax.weights.errors import WeightsError

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"
ENGINE = {"context_length": 128, "max_rows": 2, "page_size": 16, "prefill_tokens": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = with_template()
    target = tmp_path_factory.mktemp("model") / "m"
    return export_safetensors(model.config, model.params, target, tokenizer=model.tokenizer)


def with_template():
    model = tiny_model()
    special = dataclasses.replace(model.tokenizer.special, chat_template=TEMPLATE)
    return model._replace(tokenizer=model.tokenizer._replace(special=special))


def config(folder, **groups):
    sampling = {"max_tokens": 5, "ignore_eos": True}
    return {"model": str(folder), "engine": ENGINE, "sampling": sampling} | groups


def test_a_prompt_is_answered_in_the_model_s_own_template(folder, tmp_path, capsys):
    assert run("generate", config(folder, generate={"prompt": "hi"}), tmp_path, []) == 0
    chatted = capsys.readouterr().out
    raw = {"prompt": "u:hi\na:", "raw": True}
    assert run("generate", config(folder, generate=raw), tmp_path, []) == 0
    assert capsys.readouterr().out == chatted != "\n"


def test_a_file_of_prompts_is_answered_once(folder, tmp_path, capsys):
    lines = [
        {"id": "plain", "prompt": "one"},
        {"id": "chat", "messages": [{"role": "user", "content": "one"}]},
        {"id": "longer", "prompt": "three", "max_tokens": 9, "logprobs": 2},
        {"id": "seeded", "prompt": "two", "temperature": 1.0, "seed": 3},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines[:2]))
    ask = config(folder, generate={"input": str(tmp_path / "in.jsonl")})
    assert run("generate", ask, tmp_path / "w", []) == 0
    assert "2 answers written" in capsys.readouterr().out
    first = (tmp_path / "w" / "answers.jsonl").read_text()
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert run("generate", ask, tmp_path / "w", []) == 0
    assert "2 answers written" in capsys.readouterr().out
    text = (tmp_path / "w" / "answers.jsonl").read_text()
    assert text.startswith(first)
    answers = {x["id"]: x for x in map(json.loads, text.splitlines())}
    assert answers["plain"]["text"] == answers["chat"]["text"]
    assert answers["longer"]["usage"]["completion_tokens"] == 9
    assert len(answers["longer"]["logprobs"]) == 9


def test_a_line_that_cannot_be_answered_spoils_no_other(folder, tmp_path, capsys):
    lines = [{"id": "long", "prompt": "x" * 500}, {"id": "fine", "prompt": "x"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    ask = config(folder, generate={"input": str(tmp_path / "in.jsonl")})
    assert run("generate", ask, tmp_path, []) == 1
    out = capsys.readouterr()
    assert "1 answers written" in out.out and "no answer to 'long'" in out.err
    assert "at most 127 fit" in out.err


@pytest.mark.parametrize(
    "generate,message",
    [
        ({}, "either --config.generate.prompt"),
        ({"prompt": "x", "input": "y"}, "either --config.generate.prompt"),
        ({"input": "missing.jsonl"}, "missing.jsonl"),
    ],
)
def test_mistakes_are_named_before_the_model_is_loaded(generate, message, tmp_path):
    with pytest.raises((ValueError, OSError), match=message):
        run("generate", config("no such model", generate=generate), tmp_path, [])


def test_unknown_modes_models_and_adapters(folder, tmp_path):
    with pytest.raises(ValueError, match="--mode=generate"):
        run("train", config(folder), tmp_path, [])
    with pytest.raises(WeightsError, match="no file or directory"):
        run("generate", config("nowhere", generate={"prompt": "x"}), tmp_path, [])
    with pytest.raises((WeightsError, OSError), match="adapter_config.json"):
        asked = config(folder, generate={"prompt": "x"}, adapters={"a": str(tmp_path)})
        run("generate", asked, tmp_path, [])
    with pytest.raises(ValueError, match="at least 9 pages"):
        run("generate", config(folder, engine=ENGINE | {"num_pages": 5}), tmp_path, [])


def test_benchmark_writes_its_lines(folder, tmp_path, capsys):
    small = {"prompt_tokens": 8, "new_tokens": 4, "batch_sizes": (1, 2), "repeats": 1}
    assert run("benchmark", config(folder, benchmark=small), tmp_path, []) == 0
    shown = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    kept = [json.loads(x) for x in (tmp_path / "benchmark.jsonl").read_text().splitlines()]
    assert shown == kept and [x["batch"] for x in kept] == [1, 2]
    assert all(x["decode_tokens_per_second"] > 0 for x in kept)


def conversation(**sampling):
    sampling = SamplingParams(**{"max_tokens": 5, "ignore_eos": True} | sampling)
    return Conversation(Engine(with_template(), EngineConfig(**ENGINE)), sampling)


def test_a_conversation_reads_what_was_said_before():
    talk = conversation()
    first = "".join(talk.ask("one"))
    second = "".join(talk.ask("two"))
    assert [m["content"] for m in talk.messages] == ["one", first, "two", second]
    fresh = conversation()
    fresh.messages = talk.messages[:2]
    assert "".join(fresh.ask("two")) == second
    assert talk.undo() and [m["content"] for m in talk.messages] == ["one", first]
    talk.start("be brief")
    assert talk.messages == [{"role": "system", "content": "be brief"}] and not talk.undo()


def test_a_full_context_leaves_out_the_oldest_turns():
    talk = conversation()
    for number in range(12):
        "".join(talk.ask(f"question {number}"))
    assert talk.messages[0]["content"] != "question 0"
    assert talk.messages[0]["role"] == "user" and len(talk.messages) % 2 == 0
    with pytest.raises(RequestError, match="Shorten it"):
        next(talk.ask("x" * 300))
    assert talk.messages[-1]["role"] == "assistant"


def test_an_answer_can_be_stopped_and_the_talk_goes_on():
    talk = conversation(max_tokens=None)
    answer = talk.ask("one")
    said = next(answer)
    answer.close()
    assert talk.messages[-1] == {"role": "assistant", "content": said}
    assert "".join(talk.ask("two"))


def test_the_terminal_s_commands():
    lines = iter(["hello", "/undo", "/undo", "/system be kind", "/help", "", "/reset", "/exit"])
    out, talk = io.StringIO(), conversation()
    chat(talk, read=lambda _: next(lines), out=out)
    text = out.getvalue()
    assert "taken back" in text and "nothing to take back" in text and "/system TEXT" in text
    assert talk.system == "be kind"


def test_a_model_without_a_template_cannot_chat():
    with pytest.raises(WeightsError, match="no chat template"):
        Conversation(Engine(tiny_model(), EngineConfig(**ENGINE)), SamplingParams())
