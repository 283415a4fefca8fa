"""Ranking by words: against the formula written out, and the tools of real questions."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_jax.tools import ToolDefinition, read_tools
from agents_jax.tools.bfcl import load
from agents_jax.tools.lexical import MAX_QUERY_WORDS, WordIndex, words
from agents_jax.tools.retrieval import ToolIndex, index_text
from pangu_jax.data.wheel import WheelUnavailableError


def test_words_of_names():
    assert words("getCurrentWeather_by.City") == ["get", "current", "weather", "by", "city"]
    assert words("HTTPServer2 OK") == ["http", "server2", "ok"]
    assert words("Countries, glasses; bus status") == ["country", "glasse", "bus", "status"]
    assert words("Wetter in München, 東京") == ["wetter", "in", "münchen", "東京"]
    assert words("--- \n") == []


def bm25_plus(texts, query, k1=1.5, b=0.75, delta=1.0):
    """Lv and Zhai (2011), without the share that a text gets for words that it lacks."""
    split = [words(text) for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = np.zeros(len(texts))
    for word in dict.fromkeys(words(query)):
        having = sum(word in text for text in split)
        if not having:
            continue
        idf = math.log((len(texts) + 1) / having)
        for index, text in enumerate(split):
            frequency = collections.Counter(text)[word]
            length = k1 * (1 - b + b * len(text) / mean)
            if frequency:
                scores[index] += idf * (frequency * (k1 + 1) / (frequency + length))
    return scores


_text = st.lists(st.sampled_from(["rain", "sun", "snow", "wind", "hail"]), max_size=8).map(" ".join)


@given(st.lists(_text, min_size=1, max_size=6), _text)
def test_scores_are_those_of_the_formula(texts, query):
    index = WordIndex(texts)
    want = bm25_plus(texts, query) if any(texts) else np.zeros(len(texts))
    np.testing.assert_allclose(index.scores(query), want, atol=1e-6)
    top = index.top(query, len(texts))
    assert [i for i, _ in top] == sorted(range(len(texts)), key=lambda i: (-round(want[i], 6), i))


def test_ties_empty_and_long_queries():
    index = WordIndex(["a", "a", "b", ""])
    assert [i for i, _ in index.top("b", 4)] == [2, 0, 1, 3]
    assert [i for i, _ in index.top("unknown", 2)] == [0, 1]
    assert WordIndex([]).top("a", 3) == []
    assert [i for i, _ in WordIndex(["", ""]).top("a", 3)] == [0, 1]
    many = [f"w{i}" for i in range(2 * MAX_QUERY_WORDS)]
    long = WordIndex([*many, "other"])
    assert np.count_nonzero(long.scores(" ".join(many * 3))) == MAX_QUERY_WORDS


def test_k_is_checked():
    index = ToolIndex([ToolDefinition("f")])
    for k in (0, -1, 1.5, True, "3"):
        with pytest.raises(ValueError, match="a whole number above 0 is needed"):
            index.top("f", k)


def test_what_a_tool_is_found_by():
    (tool,) = read_tools([{
        "name": "getForecast", "description": "Weather of the next days.",
        "parameters": {"type": "object", "properties": {
            "place": {"type": "object", "description": "Where.", "properties": {
                "postal_code": {"type": "string", "description": "Five digits."}}},
            "units": {"type": "array", "items": {
                "type": "object", "properties": {"scale": {"type": "string"}}}},
        }},
    }])  # fmt: skip
    found = set(words(index_text(tool)))
    assert {"forecast", "weather", "place", "where", "postal", "digit", "unit", "scale"} <= found
    fewer = set(words(index_text(tool, parameter_descriptions=False)))
    assert found - fewer == {"where", "five", "digit"}


def test_a_thousand_tools_are_cut_to_the_right_ones():
    pool = [ToolDefinition(f"tool_{i}", f"Handles item {i} of the stock.") for i in range(1000)]
    pool[617] = ToolDefinition("convert_currency", "Converts money between currencies.")
    index = ToolIndex(pool)
    top = index.top("How much money is 5 dollars in another currency?", 3)
    assert top[0] is pool[617] and len(top) == 3
    assert index.ranked("currency", 1)[0][1] > 0


def test_recall_on_real_questions():
    """A floor below what was measured on all of them, see docs/tools.md."""
    try:
        items = load("simple_python")
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")
    items = items[:100]
    pool = {function["name"]: function for item in items for function in item.functions}
    index = ToolIndex(read_tools(pool.values()))
    found = [
        item.called_names[0] in [d.name for d in index.top(item.messages[-1]["content"], 5)]
        for item in items
    ]
    assert np.mean(found) > 0.9
