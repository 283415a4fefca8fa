"""Solve counts, which items a round keeps, and how selections are compared."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.llm import ScriptedModel
from agents_jax.tools.bfcl.data import make_item
from agents_jax.tools.toolace_r.selection import (
    Attempts,
    SelectionConfig,
    grows,
    histogram,
    sample_attempts,
    select,
    transitions,
)


def item(number, category="simple_python"):
    parameters = {"type": "dict", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    function = {"name": f"f{number}", "description": "", "parameters": parameters}
    entry = {
        "id": f"{category}_{number}",
        "question": [[{"role": "user", "content": f"Question {number}."}]],
        "function": [function],
    }
    truth = [{f"f{number}": {"a": [number]}}] if category == "simple_python" else ()
    return make_item(entry, category, truth)


def attempts(counts, k=4):
    return {
        f"simple_python_{n}": Attempts(("",) * k, tuple(i < c for i in range(k)))
        for n, c in enumerate(counts)
    }


def chosen(counts, k=4, round_number=1, size=None, **settings):
    items = [item(n) for n in range(len(counts))]
    found = select(
        items, attempts(counts, k), SelectionConfig(samples=k, **settings),
        round_number=round_number, size=size,
    )  # fmt: skip
    return [int(name.rsplit("_", 1)[1]) for name in found.ids], found


def test_samples_are_judged_by_the_checker():
    items = [item(1), item(2), item(7, "irrelevance")]
    right = {"Question 1.": "[f1(a=1)]", "Question 2.": "[f2(a=1)]"}

    def answer(request):
        question = request.messages[-1]["content"]
        if request.sample == 3:
            return "[f7(a=1)]"
        return right.get(question, "None of the functions can be used.")

    model = ScriptedModel(answer)
    found = sample_attempts(model, items, SelectionConfig(samples=4), max_tokens=9)
    assert [a.solved for a in found.values()] == [3, 0, 3]
    assert all(len(a.texts) == 4 for a in found.values())
    assert {r.temperature for r in model.asked} == {1.0} and {
        r.max_tokens for r in model.asked
    } == {9}
    assert len({(r.seed, r.sample) for r in model.asked}) == 12


def test_the_rule_keeps_what_lies_within_its_bounds():
    counts = [0, 1, 2, 3, 4, 4]
    assert chosen(counts)[0] == [1, 2, 3, 4, 5]
    assert chosen(counts, max_solved=3)[0] == [1, 2, 3]
    assert chosen(counts, min_solved=2, max_solved=2)[0] == [2]
    assert chosen(counts, rule="none")[0] == list(range(6))
    assert chosen([0, 0])[0] == []
    ids, found = chosen(counts, share=0.6)
    assert len(ids) == 3 and set(ids) < {1, 2, 3, 4, 5} and found.qualified == 5


def test_random_draws_as_many_without_looking():
    counts = [0] * 30 + [4] * 30
    ids, found = chosen(counts, rule="random")
    assert len(ids) == 30 and ids == sorted(set(ids)) and min(ids) < 30
    assert found.rule == "random" and found.qualified == 30
    assert chosen(counts, rule="random", size=7)[0] == chosen(counts, rule="random", size=7)[0]
    assert chosen(counts, rule="random", round_number=2)[0] != ids
    assert chosen(counts, rule="random", seed=1)[0] != ids
    with pytest.raises(ValueError, match="61 items cannot be drawn from 60"):
        chosen(counts, rule="random", size=61)


def test_a_selection_is_written_with_its_histogram():
    _, found = chosen([0, 4, 4, 2])
    values = json.loads(json.dumps(found.to_dict()))
    assert values["histogram"] == [1, 0, 1, 0, 2] and values["size"] == 3
    assert values["ids"] == ["simple_python_1", "simple_python_2", "simple_python_3"]
    assert values["solved"]["simple_python_3"] == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
@settings(max_examples=50, deadline=None)
def test_transitions_are_counts_of_pairs(pairs):
    before = {str(i): a for i, (a, _) in enumerate(pairs)} | {"only before": 3}
    after = {str(i): b for i, (_, b) in enumerate(pairs)} | {"only after": 0}
    table = np.zeros((4, 4), int)
    for a, b in pairs:
        table[a, b] += 1
    assert transitions(before, after, 3) == table.tolist()
    rows = [sum(row) for row in transitions(before, after, 3)]
    without = {name: c for name, c in before.items() if name != "only before"}
    assert rows == (histogram(without, 3) or [0] * 4)


def test_growth_by_more_than_the_share():
    assert grows([10], 0.02) and grows([100, 103], 0.02)
    assert not grows([100, 102], 0.02) and not grows([100, 90], 0.02) and not grows([0, 0], 0.02)
    assert grows([100, 90], None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rule": "best"}, "rule='best'.*solved, random, none"),
        ({"samples": 0}, "samples=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"samples": 4, "min_solved": 5}, "min_solved=5"),
        ({"min_solved": 3, "max_solved": 2}, "max_solved=2"),
        ({"share": 0.0}, "share=0.0"),
    ],
)
def test_settings_that_do_not_work_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        SelectionConfig(**settings)
