"""Chat examples, and scores of answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from agents_jax.tools import parse_calls
from agents_jax.tools.bfcl import REFUSAL, evaluate, prompt_messages, to_chat, write_chats
from agents_jax.tools.bfcl.checker import check
from agents_jax.tools.bfcl.data import make_item
from agents_jax.tools.bfcl.evaluate import wilson_interval
from agents_jax.tools.bfcl.gold import gold_text
from pangu_jax.training.sft.records import parse_chat
from tests.agents_jax.tools.bfcl.made import function, item

RIGHT = item([function(required=["a"], a="integer")], [{"f": {"a": [1, 2]}}])


def test_compact_prompt_holds_the_schema():
    system, user = prompt_messages(RIGHT)
    assert (system["role"], user) == ("system", {"role": "user", "content": "Please."})
    text = system["content"]
    assert json.loads(text[text.index("[{") :]) == list(RIGHT.functions)


def test_a_system_message_of_the_item_is_joined():
    entry = {
        "id": "x",
        "question": [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "?"}]],
        "function": [function()],
    }
    found = make_item(entry, "live_simple", [{"f": {}}])
    messages = prompt_messages(found)
    assert [m["role"] for m in messages] == ["system", "user"]
    assert messages[0]["content"].endswith("]\n\nBe kind.")
    assert found.messages[0]["content"] == "Be kind."


def test_chats_end_with_an_answer_that_passes(tmp_path):
    answers = set()
    for seed in range(20):
        messages = to_chat(RIGHT, rng=np.random.default_rng(seed))["messages"]
        assert [m["role"] for m in messages] == ["system", "user", "assistant"]
        assert check(RIGHT, parse_calls(messages[-1]["content"])).valid
        answers.add(messages[-1]["content"])
    assert answers == {"[f(a=1)]", "[f(a=2)]"}
    silent = item([function()], category="irrelevance")
    assert to_chat(silent)["messages"][-1] == {"role": "assistant", "content": REFUSAL}
    assert write_chats(tmp_path / "chats.jsonl", [RIGHT, silent]) == 2
    lines = (tmp_path / "chats.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [to_chat(RIGHT), to_chat(silent)]
    with pytest.raises(ValueError, match="no gold answer"):
        to_chat(item([function()], category="live_relevance"))
    with pytest.raises(ValueError, match="allowed: compact, official"):
        to_chat(RIGHT, "long")


def test_a_chat_of_another_language_ends_with_its_gold_text():
    java = item([function(a="integer", b="integer")], [{"f": {"a": [7], "b": [1]}}], "simple_java")
    messages = to_chat(java)["messages"]
    assert messages[-1]["content"] == gold_text(java)
    assert evaluate([java], [messages[-1]["content"]]).calls.rate == 1
    with pytest.raises(ValueError, match="use style='compact' for simple_java"):
        prompt_messages(java, "official")


def test_chats_are_read_by_fine_tuning():
    chat = parse_chat(to_chat(RIGHT), "here")
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == "[f(a=1)]"


def test_scores():
    parallel = item(
        [function(a="integer")], [{"f": {"a": [1]}}, {"f": {"a": [2]}}], "parallel", number=1
    )
    silent = item([function()], category="irrelevance", number=2)
    due = item([function()], category="live_relevance", number=3)
    items = [RIGHT, RIGHT, RIGHT, parallel, silent, silent, due]
    texts = [
        "[f(a=2)]", "[f(a='2')]", "I cannot", "[f(a=2), f(a=1)]", "I cannot", "[f()]", "nothing",
    ]  # fmt: skip
    report = evaluate(items, texts)
    simple = report.categories["simple_python"]
    assert (simple.num_items, simple.num_correct, simple.num_parse_failures) == (3, 1, 1)
    assert simple.errors == {"type_error:simple": 1, "parse_failure": 1}
    assert simple.num_right_names == 2
    assert report.calls.rate == 2 / 4
    assert report.irrelevance.rate == 1 / 2 and report.relevance.rate == 0
    assert report.irrelevance.errors == {"irrelevance:called": 1}
    assert [o.correct for o in report.outcomes] == [True, False, False, True, True, False, False]
    assert report.outcomes[2].calls is None and "Python" in report.outcomes[2].message
    values = json.loads(json.dumps(report.to_dict()))
    assert values["total"]["calls"]["rate"] == 0.5
    assert values["categories"]["simple_python"]["parse_failure_rate"] == 1 / 3
    assert "all: irrelevance" in str(report) and "50.0%" in str(report)
    with pytest.raises(ValueError, match="1 texts for 7 items"):
        evaluate(items, texts[:1])


def test_forms_count_where_asked():
    text = '{"name": "f", "arguments": {"a": 1}}'
    assert evaluate([RIGHT], [text]).calls.rate == 0
    assert evaluate([RIGHT], [text], dialect="any").calls.rate == 1


def test_no_items():
    report = evaluate([], [])
    assert math.isnan(report.calls.rate) and report.calls.interval == (0, 1)
    assert report.to_dict() == {"total": {}, "categories": {}} and str(report)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 24), (10, 24), (391, 400), (1, 1)])
def test_wilson_interval_is_scipys(k, n):
    expected = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson_interval(k, n), expected, atol=1e-6)
