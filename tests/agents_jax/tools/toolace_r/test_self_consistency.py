"""Votes over calls, and as many samples as a budget of tokens pays for."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.llm import GenerateRequest, ScriptedModel
from agents_jax.tools.agent import Cost
from agents_jax.tools.toolace_r.self_consistency import (
    Samples,
    draw,
    majority,
    samples_for_budget,
)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_majority_is_the_most_frequent_the_earliest_of_equals(letters):
    count = collections.Counter(letters)
    best = max(letters, key=lambda x: (count[x], -letters.index(x)))
    assert majority([f"[{x}(p=1)]" for x in letters]) == f"[{best}(p=1)]"


def test_answers_are_grouped_by_their_calls():
    texts = ["[f(a=2)]", "[g(), f(a=1)]", "no", "f(a = 1), g()", "no!"]
    assert majority(texts) == "[g(), f(a=1)]"
    assert majority(["no ", "[f(a=1)]", "no"]) == "no "
    with pytest.raises(ValueError, match="no texts"):
        majority([])


def test_samples_and_what_they_cost():
    model = ScriptedModel(lambda request: " ".join(["x"] * (request.sample + 1)))
    requests = [GenerateRequest.ask(q, seed=3) for q in ("one", "two words")]
    one, two = draw(model, requests, n=3, temperature=0.5)
    assert one.texts == two.texts == ("x", "x x", "x x x") and one.new_tokens == (1, 2, 3)
    assert (one.prompt_tokens, two.prompt_tokens) == (2, 3)
    assert {r.temperature for r in model.asked} == {0.5} and {r.seed for r in model.asked} == {3}
    assert one.cost(2) == Cost(2, 2, 3)


def test_the_largest_number_within_a_budget():
    samples = [Samples(("a",) * 4, (10,) * 4, 100), Samples(("b",) * 4, (20, 10, 10, 10), 50)]

    def tokens(n, prompt):
        return (150 if prompt else 0) + 10 * n + 10 + 10 * n

    for count in ("total", "new"):
        for n in range(1, 5):
            enough = Cost(9, 150, tokens(n, False))
            short = Cost(9, 150, tokens(n, False) - 1)
            assert samples_for_budget(samples, enough, count) == n
            assert samples_for_budget(samples, short, count) == max(n - 1, 1)
    assert samples_for_budget(samples, Cost(9, 10**6, 10**6)) == 4
    # Prompt tokens of the budget buy samples only where they count.
    assert samples_for_budget(samples, Cost(2, 200, 30), "total") == 3
    assert samples_for_budget(samples, Cost(2, 200, 30), "new") == 1
    with pytest.raises(ValueError, match="count='calls'"):
        samples_for_budget(samples, Cost(), "calls")
