"""Data sets: what they are made of, and that roles share nothing."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from meco_made import example, example_set, model

from agents_jax.tools.meco import MecoConfig, MecoError, meca, own_answers, texts
from agents_jax.tools.meco.baselines import read_confidence, verbalised
from agents_jax.tools.meco.bfcl_sets import load_relevance, load_swap
from agents_jax.tools.meco.config import ContrastConfig, DataConfig
from agents_jax.tools.meco.examples import ExampleSet, question_key
from agents_jax.tools.meco.metatool import load_metatool
from agents_jax.tools.meco.prompts import question
from agents_jax.tools.meco.tasks import Tasks
from pangu_jax.data.wheel import WheelUnavailableError


@pytest.fixture(scope="module")
def swap():
    try:
        return load_swap(500)
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")


def test_in_a_swap_queries_and_functions_stand_under_both_labels(swap):
    by_label = collections.defaultdict(list)
    for one in swap.examples:
        by_label[question_key(one.query), one.needed].append(one)
    queries = {query for query, _ in by_label}
    assert len(swap) == 2 * len(queries) >= 40
    tools = {needed: [] for needed in (True, False)}
    for query in queries:
        for needed in (True, False):
            (one,) = by_label[query, needed]
            tools[needed].append(one.tools[0]["name"])
        own, other = by_label[query, True][0], by_label[query, False][0]
        assert set(own.links) == set(other.links) and own.tools != other.tools
        assert other.tools[0]["name"] not in own.payload.called_names
    # Each function is offered as often rightly as wrongly.
    assert collections.Counter(tools[True]) == collections.Counter(tools[False])
    overlap = [texts.overlap(e.query, e.tools) for e in swap.examples]
    means = [np.mean([o for o, e in zip(overlap, swap.examples, strict=True) if e.needed is n])
             for n in (True, False)]  # fmt: skip
    assert abs(means[0] - means[1]) < 0.03


def test_relevance_asks_no_question_twice(swap):
    del swap  # the wheel is there
    data = load_relevance(500)
    keys = [question_key(e.query) for e in data.examples]
    assert len(set(keys)) == len(keys) and 0.2 < data.labels.mean() < 0.8
    assert {e.source for e in data.examples} == {"live", "non_live"}
    assert all(len(e.tools) == 1 for e in data.examples)


def metatool_file(tmp_path, count=40, **changes):
    entries = [
        {
            "thought_prompt": f"Be aware.\nquery {i}\nHere are some examples:\nq answer: Yes\n\n"
            f'User query: "query {i}" answer: ',
            "query": f"query {i}",
            "label": "positive" if i % 2 else "negative",
            **({"tool": f"tool{i // 4}"} if i % 2 else {}),
            **changes,
        }
        for i in range(count)
    ]
    path = tmp_path / "Task1.json"
    path.write_text(json.dumps(entries))
    return str(path)


def test_metatool_with_and_without_worked_examples(tmp_path):
    path = metatool_file(tmp_path)
    plain, context = load_metatool(path), load_metatool(path, context=True)
    assert plain.labels.sum() == 20
    assert question(plain.examples[1]).startswith("Be aware.\nquery 1\nAnswer Yes or No first")
    shown = question(context.examples[1])
    assert "Here are some examples" in shown and 'User query: "query 1"\n' in shown
    assert plain.examples[1].links == plain.examples[3].links == (("tool", "tool0"),)


@pytest.mark.parametrize(
    "text, match",
    [("{}", "must hold a list"), ("[", "cannot be read as JSON"), ("[3]", "entry 0"),
     ('[{"thought_prompt": "", "query": "q", "label": "maybe"}]', "label='maybe'")],
)  # fmt: skip
def test_files_that_are_no_task_1_are_named(tmp_path, text, match):
    path = tmp_path / "Task1.json"
    path.write_text(text)
    with pytest.raises(MecoError, match=match):
        load_metatool(str(path))
    with pytest.raises(MecoError, match="--config.data.metatool=FILE"):
        load_metatool("")


def test_contrast_and_sets_share_no_query_and_no_tool(tmp_path, swap):
    del swap
    config = MecoConfig(
        data=DataConfig(metatool=metatool_file(tmp_path, 200), sizes={"default": 20}),
        contrast=ContrastConfig(num_queries=8),
    )
    tasks = Tasks(config)
    contrast = tasks.contrast()
    assert len(contrast) == 8 and sum(e.needed for e in contrast) == 4
    sets = [tasks.get(n) for n in ("metatool", "metatool_context", "meca_no_tools")]
    kept = [contrast, *(data.examples for data in sets)]
    queries = [{question_key(e.query) for e in part} for part in kept]
    links = [{link for e in part for link in e.links} for part in kept]
    for i in (1, 2, 3):
        assert not queries[0] & queries[i] and not links[0] & links[i]
    assert not queries[1] & queries[3] and not links[1] & links[3]
    assert all(e.template == "no_tools" for e in contrast)
    assert tasks.get("metatool") is tasks.get("metatool")


def test_without_metatool_the_contrast_comes_from_bfcl(swap):
    del swap
    config = MecoConfig(data=DataConfig(max_chars=400), contrast=ContrastConfig(num_queries=8))
    tasks = Tasks(config)
    assert "Task1.json" in tasks.missing("metatool_matched")
    assert "Task1.json" in tasks.missing("meca_with_tools_multi")
    assert not tasks.missing("swap") and not tasks.missing("meca_no_relevant_multi")
    contrast = {question_key(e.query) for e in tasks.contrast()}
    for name in ("relevance", "swap"):
        assert not contrast & {question_key(e.query) for e in tasks.get(name).examples}
    with pytest.raises(MecoError, match="needs the model"):
        tasks.get("retrieval")


def test_multi_turn_adds_a_turn_that_says_nothing():
    data = example_set(12)
    multi = meca.multi_turn(data)
    assert multi.name == "made_multi"
    for one, other in zip(data.examples, multi.examples, strict=True):
        assert (one.query, one.needed) == (other.query, other.needed)
        assert [m["role"] for m in other.history] == ["user", "assistant"]


@pytest.mark.parametrize("paired", [False, True])
def test_the_turn_before_tells_no_label(paired):
    # Labels alternate, as they do in sets of pairs.
    examples = tuple(example(i, i % 2 == 0) for i in range(72))
    if paired:
        examples = tuple(
            dataclasses.replace(e, query=examples[i - i % 2].query) for i, e in enumerate(examples)
        )
    multi = meca.multi_turn(ExampleSet("made", "", examples))
    turns = {needed: collections.Counter() for needed in (True, False)}
    for one in multi.examples:
        turns[one.needed][one.history[0]["content"]] += 1
    assert turns[True] == turns[False] and len(turns[True]) == 6


def test_with_tools_lends_functions_to_queries_that_need_none():
    tool = {"name": "f", "description": ""}
    lenders = ExampleSet(
        "r", "",
        tuple(example(i, True, tools=({**tool, "name": f"f{i}"},), links=(f"f{i}",),
                      template="tools")
              for i in range(12)),
    )  # fmt: skip
    idle = ExampleSet("m", "", tuple(example(100 + i, False) for i in range(6)))
    made = meca.with_tools(lenders, idle, 8)
    assert len(made) == 8 and made.labels.sum() == 4
    assert all(len(e.tools) == 1 and e.template == "tools" for e in made.examples)
    names = [e.tools[0]["name"] for e in made.examples]
    assert len(set(names)) == 8


@pytest.mark.parametrize(
    "kind, text, answer, reply, right",
    [
        ("+2", "What is 12 + 34?", "46", "12 + 34 = 46.", True),
        ("+2", "What is 12 + 34?", "46", "46 is it? No, 47", False),
        ("*3", "What is 100 * 100?", "10000", "It is 10,000", True),
        ("-1", "What is 3 - 3?", "0", "none", False),
        ("symbol", "", "Co", "The symbol is Co.", True),
        ("symbol", "", "Co", "CO or Cobalt", False),
        ("capital", "", "Bogota", "It is Bogotá.", True),
        ("capital", "", "Male", "A female one", False),
    ],
)
def test_own_answers_are_judged(kind, text, answer, reply, right):
    assert own_answers.is_right(own_answers.Question("q", text, answer, kind), reply) is right


def test_arithmetic_is_exact_and_facts_are_whole():
    asked = own_answers.arithmetic(5, seed=3)
    assert len({q.id for q in asked}) == len(asked) == 45
    for q in asked:
        a, sign, b = q.text.removeprefix("What is ").removesuffix("?").split()
        value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert str(value) == q.answer and value >= 0
    found = own_answers.facts()
    assert len({q.id for q in found}) == len(found) > 300
    elements = [q for q in found if q.kind == "symbol"]
    assert len(elements) == 94 and len({q.answer for q in elements}) == 94


def test_own_ability_is_balanced_within_each_kind():
    asked = own_answers.arithmetic(20, seed=0)
    # Right where the answer is odd: not by kind alone.
    replies = [q.answer if int(q.answer) % 2 else "no idea" for q in asked]
    data, balance = own_answers.own_ability("x", asked, replies, template="calculator")
    for kind in {q.kind for q in asked}:
        right = sum(int(q.answer) % 2 for q in asked if q.kind == kind)
        assert balance[kind] == (right, 20)
        of_kind = [e for e in data.examples if e.source == kind]
        assert len(of_kind) == 2 * min(right, 20 - right)
        assert sum(e.needed for e in of_kind) * 2 == len(of_kind)
    with pytest.raises(MecoError, match="too few of the rarer outcome"):
        own_answers.own_ability("x", asked, ["no"] * len(asked), template="calculator")


@pytest.mark.parametrize(
    "reply, value",
    [("85", 0.85), ("I am 85% sure", 0.85), ("0.85", 0.85), ("8/10", 0.8), ("85/100.", 0.85),
     ("8.5 out of 10", 0.85), ("1", 0.01), ("1.0", 1.0), ("Yes", None), ("2024", None),
     ("in 2024, 40", 0.4), ("", None)],
)  # fmt: skip
def test_stated_confidence_is_read_tolerantly(reply, value):
    assert read_confidence(reply) == (None if value is None else pytest.approx(value))


def test_replies_without_a_number_count_as_one_half():
    asked = model(answers=["90", "who knows"], concurrency=1)
    found, unread = verbalised(asked, example_set(2).examples)
    assert found.tolist() == [0.9, 0.5] and unread == 1
