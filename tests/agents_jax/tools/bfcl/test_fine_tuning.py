"""A whole run of fine-tuning on BFCL with a random model: split, training, answers, report."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from agents_jax.tools.bfcl import fine_tuning
from pangu_jax.config.resolve import ConfigError


def config(**changes):
    engine = {"context_length": 1536, "max_rows": 2, "page_size": 64, "prefill_tokens": 256}
    train = {"steps": 2, "eval_every": 2, "checkpoint_every": 2, "log_every": 1,
             "quick_compile": True, "best_metric": "loss", "best_mode": "min"}  # fmt: skip
    sft = {"base": "tiny", "seq_len": 1200, "batch_rows": 8, "lora": {"rank": 2}, "train": train}
    return {
        "categories": ("simple_python",), "answer_tokens": 16, "exact_match_items": 2,
        "engine": engine, "sft": sft,
    } | changes  # fmt: skip


def test_a_run_judges_answers_before_and_after(real_items, tmp_path, capsys):
    assert fine_tuning.run("train", config(), tmp_path, []) == 0
    lines = [json.loads(x) for x in (tmp_path / "exact_match.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [0, 2]
    assert all(x["total"]["calls"]["num_items"] == 2 for x in lines)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["held_out_best"]["exact_match"] == lines[-1]["total"]["calls"]["rate"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    out = capsys.readouterr().out
    assert "Apache-2.0" in out and "items to train on" in out


def test_answers_inside_a_run_are_those_of_the_engine_alone(real_items, tmp_path, monkeypatch):
    """Training's mesh and axis rules are in force around `judge`; they change no answer."""
    kept = {}
    real_evaluate, real_judge = fine_tuning.evaluate, fine_tuning.judge

    def evaluate(items, texts):
        kept.setdefault("texts", []).append(list(texts))
        return real_evaluate(items, texts)

    def judge(tuned, items, settings):
        host = jax.device_get((tuned.params, tuned.adapter))
        host = jax.tree.map(np.copy, host)  # training goes on in the buffers these look into
        kept["last"] = (
            dataclasses.replace(tuned, params=host[0], adapter=host[1]),
            items,
            settings,
        )
        jax.clear_caches()  # so that programs are traced under the rules of training
        return real_judge(tuned, items, settings)

    monkeypatch.setattr(fine_tuning, "evaluate", evaluate)
    monkeypatch.setattr(fine_tuning, "judge", judge)
    assert fine_tuning.run("train", config(), tmp_path, []) == 0
    inside = kept["texts"][-1]
    assert any(inside)
    real_judge(*kept["last"])
    assert kept["texts"][-1] == inside


def test_an_answer_that_failed_is_not_a_wrong_one(real_items, tmp_path, monkeypatch):
    def fail(*args):
        raise FloatingPointError("made up")

    monkeypatch.setattr(fine_tuning.Engine, "_prefill", fail)
    with pytest.raises(RuntimeError, match=r"2 of 2 .* FloatingPointError: made up"):
        fine_tuning.run("train", config(), tmp_path, [])


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="use train"):
        fine_tuning.run("generate", config(), tmp_path, [])
    with pytest.raises(ConfigError, match="catgories"):
        fine_tuning.run("train", config(catgories=("multiple",)), tmp_path, [])
