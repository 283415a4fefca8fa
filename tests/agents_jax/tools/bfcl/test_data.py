"""Items from files made here, and from the pinned wheel."""

from __future__ import annotations

import json

import pytest

from agents_jax.tools import Call, parse_calls, render_calls
from agents_jax.tools.bfcl import data
from agents_jax.tools.bfcl.data import AST_CATEGORIES, CATEGORIES, BfclDataError, to_json_schema
from agents_jax.tools.bfcl.gold import gold_calls, is_solvable
from tests.agents_jax.tools.bfcl.made import function, item


def test_types_become_json_schema():
    source = function("f", ["a"], a="float", b=["tuple", "dict"], c="any", d="boolean", e="")
    source["parameters"]["properties"]["b"]["items"]["properties"] = {"x": {"type": "array"}}
    source["parameters"]["properties"]["d"] |= {"default": True, "optional": True, "enum": [True]}
    before = json.dumps(source)
    schema = to_json_schema(source)
    assert json.dumps(source) == before
    assert schema["parameters"]["type"] == "object" and schema["parameters"]["required"] == ["a"]
    properties = schema["parameters"]["properties"]
    assert {k: v.get("type") for k, v in properties.items()} == {
        "a": "number", "b": "array", "c": "string", "d": "boolean", "e": None,
    }  # fmt: skip
    assert properties["b"]["items"]["type"] == "object"
    assert properties["b"]["items"]["properties"]["x"]["type"] == "array"
    assert properties["d"] == {
        "type": "boolean", "description": "The d.", "default": True, "enum": [True],
    }  # fmt: skip


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Three questions and answers in place of the wheel's simple_python."""
    monkeypatch.setitem(data.CATEGORIES, "simple_python", 3)

    def member(wheel, path, cache=None):
        return tmp_path / path.removeprefix("bfcl_eval/data/").replace("/", "_")

    monkeypatch.setattr(data, "fetch_member", member)
    entries = [
        {
            "id": f"simple_python_{i}",
            "question": [[{"role": "user", "content": f"Ö {i}\u2028"}]],
            "function": [function(a="integer")],
        }
        for i in range(3)
    ]
    answers = [{"id": e["id"], "ground_truth": [{"f": {"a": [i]}}]} for i, e in enumerate(entries)]

    def write(entries=entries, answers=answers):
        for name, rows in (("", entries), ("possible_answer_", answers)):
            text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
            (tmp_path / f"{name}BFCL_v4_simple_python.json").write_text(text, encoding="utf-8")

    return write, entries, answers


def test_questions_meet_their_answers(folder):
    write, *_ = folder
    write()
    items = data.load("simple_python")
    assert [i.ground_truth[0]["f"]["a"] for i in items] == [[0], [1], [2]]
    assert items[1].messages == ({"role": "user", "content": "Ö 1\u2028"},)
    assert items[0].called_names == items[0].offered_names == ("f",)
    assert items[0].raw_functions[0]["parameters"]["type"] == "dict"


def test_damaged_data_are_refused(folder):
    write, entries, answers = folder
    write(answers=answers[::-1])
    with pytest.raises(BfclDataError, match="same ids"):
        data.load("simple_python")
    write(entries[:2], answers[:2])
    with pytest.raises(BfclDataError, match="2 items; 3"):
        data.load(["simple_python"])
    entries[0]["question"] *= 2
    write()
    with pytest.raises(BfclDataError, match="simple_python_0 has 2 turns"):
        data.load("simple_python")
    with pytest.raises(BfclDataError, match="'memory' is not read here; allowed: simple_p.*java"):
        data.load(["memory"])


def test_the_first_allowed_values_are_called_with():
    kinds = {name: "string" for name in "abcd"}
    question = item(
        [function("f", ["a"], **kinds, e="dict", g=["array", "dict"])],
        [
            {
                "f": {
                    "a": ["", "x", "y"],  # required: the first that is not ""
                    "b": ["", "x"],  # may be left out, and that comes first
                    "c": ["z", ""],
                    "e": [{"k": ["", 1], "m": [{"deep": [3]}], "n": [2]}],
                    "g": [[{"k": [1, 2]}, {"k": [3], "l": [""]}]],
                    "unknown": ["", 1],
                }
            }
        ],
    )
    (call,) = gold_calls(question)
    assert call == Call(
        "f",
        {
            "a": "x",
            "c": "z",
            "e": {"m": {"deep": [3]}, "n": 2},
            "g": [{"k": 1}, {"k": 3}],
        },
    )
    assert is_solvable(question)
    nothing = item([function("f", ["a"], a="string")], [{"f": {"a": []}}])
    assert gold_calls(nothing) == [Call("f", {})] and not is_solvable(nothing)


def test_counts(real_items):
    found = [i.category for i in real_items]
    assert {c: found.count(c) for c in CATEGORIES} == CATEGORIES
    assert len({i.id for i in real_items}) == len(real_items) == 3491
    assert len({i.called_names for i in real_items if i.category == "simple_python"}) == 370
    for found in real_items:
        assert bool(found.ground_truth) == (found.category in AST_CATEGORIES)
        assert found.messages[-1]["role"] == "user"


def test_schemas_are_json_schema(real_items):
    jsonschema = pytest.importorskip("jsonschema")
    for found in real_items[::20]:
        for one in found.functions:
            jsonschema.Draft202012Validator.check_schema(one["parameters"])


def test_schemas_use_json_types_only(real_items):
    def walk(schema):
        assert schema.get("type", "string") in data._JSON_SAME
        for below in [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]:
            walk(below)

    for found in real_items:
        for one in found.functions:
            walk(one["parameters"])


def test_gold_answers_are_right_but_for_contradictions(real_items):
    """The contradictory ones ask for a required parameter without allowing a value, or for one that
    the function does not have."""
    wrong = {
        i.id
        for i in real_items
        if not is_solvable(i) or parse_calls(render_calls(gold_calls(i))) != gold_calls(i)
    }
    assert wrong == {
        "live_simple_106-63-0",
        "live_simple_112-68-0",
        "live_multiple_862-181-3",
        "live_multiple_964-207-0",
    }
