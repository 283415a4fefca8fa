"""Definitions of tools and arguments against them: what is taken, refused, and how it is said."""

from __future__ import annotations

import json
import math

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.tools import (
    ArgumentError,
    ToolDefinition,
    ToolDefinitionError,
    check_arguments,
    read_tools,
)
from agents_jax.tools.schemas import MAX_CHARS, MAX_DEPTH, MAX_NODES

STRING = {"type": "string"}


def parameters(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required)}


def nested(levels):
    schema = STRING
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def test_both_forms_give_the_same_definitions():
    bare = {"name": "f", "description": "Does f.", "parameters": parameters(["a"], a=STRING)}
    wrapped = {"type": "function", "function": bare}
    strict = {"type": "function", "function": {**bare, "strict": True}}
    (one,), (two,), (three,) = read_tools([bare]), read_tools([wrapped]), read_tools([strict])
    assert one == two == three == read_tools([one])[0]
    assert one.openai() == wrapped
    assert one.required == ("a",)
    assert dict(one.properties) == {"a": STRING}


def test_parameters_may_be_left_out():
    for parameters_ in (None, {}, {"properties": {}}, {"type": "object", "properties": {}}):
        (tool,) = read_tools([{"name": "f", "parameters": parameters_}])
        assert tool.parameters["type"] == "object"
        assert check_arguments(tool, {}) == {}
    (tool,) = read_tools([{"name": "f"}])
    with pytest.raises(ArgumentError, match="f: a: no arguments are taken"):
        check_arguments(tool, {"a": 1})


def test_definitions_do_not_change_with_the_callers_values():
    schema = parameters(a={"type": "string", "enum": ["x"]})
    (tool,) = read_tools([{"name": "f", "parameters": schema}])
    schema["properties"]["a"]["enum"].append("y")
    tool.openai()["function"]["parameters"]["properties"].clear()
    assert tool.properties["a"]["enum"] == ["x"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, r"tools\[1\]: is 3; an object is needed"),
        ({"description": "x"}, r"tools\[1\]: has no 'name'"),
        ({"name": ""}, r'the name "" is not allowed'),
        ({"name": "a b"}, r'the name "a b" is not allowed; 1 to 128 letters'),
        ({"name": "x" * 129}, "is not allowed; 1 to 128"),
        ({"name": 3}, "the name 3 is not allowed"),
        ({"name": "first"}, r"'first' is already that of tools\[0\]; names must differ"),
        ({"type": "web_search"}, "has the type \"web_search\"; allowed: 'function'"),
        ({"type": "function"}, "'function' is null; an object is needed"),
        ({"name": "f", "returns": {}}, 'unknown keys "returns"; known: name, description'),
        ({"name": "f", "description": 3}, "description of 'f' is 3; text is needed"),
        ({"name": "f", "parameters": []}, "parameters of 'f': is \\[\\]; a JSON Schema object"),
        ({"name": "f", "parameters": {"type": "string"}}, '"string" at the top'),
        ({"name": "f", "parameters": {"type": ["object", "null"]}}, "at the top"),
        ({"name": "f", "parameters": {"type": "dict"}}, 'type is "dict".*to_json_schema'),
        (
            {"name": "f", "parameters": parameters(a={"type": "float"})},
            'properties.a.type is "float", which is no type; allowed: array, boolean',
        ),
        ({"name": "f", "parameters": {"type": "object", "required": "a"}}, "valid JSON Schema"),
        ({"name": "f", "parameters": parameters(a={"enum": 3})}, "properties.a.enum is 3"),
        ({"name": "f", "parameters": parameters(a={"pattern": "("})}, "properties.a.pattern"),
        ({"name": "f", "parameters": parameters(a={"maximum": math.nan})}, "written as JSON"),
        ({"name": "f", "parameters": parameters(a={"enum": [{1, 2}]})}, "written as JSON"),
        (
            {"name": "f", "parameters": parameters(a={"enum": ["x" * MAX_CHARS]})},
            f"at most {MAX_CHARS} are taken",
        ),
        ({"name": "f", "parameters": parameters(a=nested(MAX_DEPTH))}, f"more than {MAX_DEPTH}"),
        ({"name": "f", "parameters": parameters(a=nested(5000))}, "deep|written as JSON|at most"),
        (
            {"name": "f", "parameters": {"type": "object", "allOf": [True] * (MAX_NODES + 1)}},
            f"more than {MAX_NODES} schemas",
        ),
    ],
)
def test_refused_tools_are_named(value, reason):
    with pytest.raises(ToolDefinitionError, match=reason):
        read_tools([{"name": "first"}, value])


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"properties": {"a": {"$ref": "#"}}}, "properties.a is recursive: .* whole schema"),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/node"}},
                "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}},
            },
            "recursive .#/.defs/node -> #/.defs/node.",
        ),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/x"}},
                "$defs": {
                    "x": {"items": {"$ref": "#/$defs/y"}},
                    "y": {"not": {"$ref": "#/$defs/x"}},
                },
            },
            "#/.defs/x -> #/.defs/y -> #/.defs/x",
        ),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "recursive"),
        ({"properties": {"a": {"$ref": "https://example.com/s.json"}}}, "outside of the schema"),
        ({"properties": {"a": {"$ref": "other.json#/x"}}}, "outside of the schema"),
        ({"properties": {"a": {"$ref": 3}}}, "refers to 3, outside"),
        ({"properties": {"a": {"$ref": "#/$defs/absent"}}}, "which is not there"),
        ({"properties": {"a": {"$id": "https://example.com"}}}, "has '.id', which is not taken"),
        ({"properties": {"a": {"$dynamicRef": "#x"}}}, "has '.dynamicRef'"),
        (
            {  # 2 ** 12 schemas without a cycle
                "properties": {"a": {"$ref": "#/$defs/n0"}},
                "$defs": {f"n{i}": {"anyOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 8} for i in range(6)}
                | {"n6": {}},
            },
            f"more than {MAX_NODES} schemas",
        ),
    ],
)
def test_references_out_or_back_are_refused(schema, reason):
    with pytest.raises(ToolDefinitionError, match=reason):
        ToolDefinition("f", "", {"type": "object", **schema})


def test_references_within_are_followed():
    tool = ToolDefinition(
        "f",
        "",
        {
            "type": "object",
            "properties": {
                "from": {"$ref": "#/$defs/a~1b"},
                "to": {"$ref": "#/properties/from"},
                "$ref": {"type": "integer"},  # a parameter of this name is no reference
            },
            "$defs": {"a/b": {"type": "string", "enum": ["x"]}},
        },
    )
    assert check_arguments(tool, {"from": "x", "to": "x", "$ref": 1})
    with pytest.raises(ArgumentError, match='to: "y" is not allowed; one of: "x"'):
        check_arguments(tool, {"from": "x", "to": "y"})


def test_not_a_list_of_tools():
    for value in ("f", {"name": "f"}, 3, None):
        with pytest.raises(ToolDefinitionError, match="tasks:3 is .*; a list of tools is needed"):
            read_tools(value, where="tasks:3")


def test_every_problem_of_arguments_is_told():
    tool = ToolDefinition(
        "order",
        "",
        parameters(
            ["item", "size"],
            item=STRING,
            size={"enum": ["small", "large"]},
            count={"type": "integer", "minimum": 1},
            tags={"type": "array", "items": STRING},
            to={"type": "object", "properties": {"city": STRING}, "required": ["city"]},
            when={"anyOf": [{"type": "string"}, {"type": "null"}]},
        ),
    )
    with pytest.raises(ArgumentError) as caught:
        check_arguments(
            tool,
            {"size": "huge", "count": "2", "tags": ["a", 3], "to": {}, "when": 5, "gift": True},
        )
    found = {problem.path: (problem.keyword, problem.value) for problem in caught.value.problems}
    assert found == {
        "item": ("required", None),
        "size": ("enum", "huge"),
        "count": ("type", "2"),
        "tags[1]": ("type", 3),
        "to.city": ("required", None),
        "when": ("anyOf", 5),
        "gift": ("additionalProperties", True),
    }
    text = str(caught.value)
    assert text.startswith("order: ")
    assert 'count: "2" is not allowed; type integer.' in text
    assert 'size: "huge" is not allowed; one of: "small", "large".' in text
    assert "item: is missing." in text
    assert "gift: is unknown; allowed: item, size, count, tags, to, when." in text
    with pytest.raises(ArgumentError, match="count: 0 is not allowed; minimum is 1"):
        check_arguments(tool, {"item": "x", "size": "small", "count": 0})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([1], "an object of arguments by name is needed"),
        ("a=1", "an object of arguments by name is needed"),
        ({"a": {1: 2}}, "a: the key 1 is not text"),
        ({"a": math.nan}, "a: nan is not taken"),
        ({"a": 2**5000}, "a: an integer of that size"),
        ({"a": {1, 2}}, "a: .* is not taken"),
    ],
)
def test_values_that_are_no_json(arguments, reason):
    tool = ToolDefinition("f", "", parameters(a={}))
    with pytest.raises(ArgumentError, match=reason):
        check_arguments(tool, arguments)


def test_deep_arguments_end():
    value = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(ArgumentError, match="more than 64 deep"):
        check_arguments(ToolDefinition("f", "", parameters(a={})), {"a": value})


def test_numbers_too_large_to_be_checked_are_a_problem():
    tool = ToolDefinition("f", "", parameters(a={"type": "number", "multipleOf": 0.1}))
    with pytest.raises(ArgumentError, match="f: .*too large|a: "):
        check_arguments(tool, {"a": 2**1024 - 1})


def test_tuples_become_lists_and_booleans_are_no_numbers():
    tool = ToolDefinition("f", "", parameters(a={"type": "array"}, n={"type": "number"}))
    assert check_arguments(tool, {"a": (1, (2,)), "n": 1}) == {"a": [1, [2]], "n": 1}
    with pytest.raises(ArgumentError, match="n: true is not allowed; type number"):
        check_arguments(tool, {"n": True})


def test_additional_arguments_only_where_the_schema_speaks_of_them():
    open_ = {"type": "object", "additionalProperties": {"type": "integer"}}
    assert check_arguments(ToolDefinition("f", "", open_), {"x": 1}) == {"x": 1}
    with pytest.raises(ArgumentError, match='x: "1" is not allowed; type integer'):
        check_arguments(ToolDefinition("f", "", open_), {"x": "1"})
    either = {
        "type": "object",
        "oneOf": [{"properties": {"a": STRING}, "required": ["a"]}, {"required": ["b"]}],
        "properties": {"b": STRING},
    }
    tool = ToolDefinition("f", "", either)
    assert check_arguments(tool, {"a": "x"}) == {"a": "x"}
    with pytest.raises(ArgumentError, match="'c' was unexpected"):
        check_arguments(tool, {"a": "x", "c": 1})


_leaf = st.sampled_from(
    [STRING, {"type": "integer"}, {"type": "boolean"}, {"enum": ["x", 1]}, {"type": "number"}]
)
_schema = st.recursive(
    _leaf, lambda inner: st.builds(lambda i: {"type": "array", "items": i}, inner), max_leaves=3
)
_value = st.recursive(
    st.one_of(st.sampled_from(["x", "y", 1, 2.5, True, None])),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
_names = st.sampled_from("abcd")


@given(
    st.dictionaries(_names, _schema, max_size=3),
    st.sets(_names),
    st.dictionaries(_names, _value, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_arguments_pass_exactly_where_the_closed_schema_holds(properties, required, arguments):
    schema = parameters(sorted(required & properties.keys()), **properties)
    closed = {**schema, "additionalProperties": False}
    try:
        assert check_arguments(ToolDefinition("f", "", schema), arguments) == arguments
        passed = True
    except ArgumentError as error:
        passed = False
        assert error.problems
    assert passed == jsonschema.Draft202012Validator(closed).is_valid(arguments)


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "$ref", "enum", "allOf", "required", "a", "$defs"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


_plain_keywords = {
    "type": st.sampled_from(["string", "float", ["string", "null"], [], 3]),
    "required": st.sampled_from([["a"], ["a", "a"], [], "a", [1]]),
    "enum": st.sampled_from([["x"], [], "x", [1, 1.0]]),
    "minimum": st.sampled_from([1, 1.5, "1"]),
    "exclusiveMinimum": st.sampled_from([1, True]),
    "minLength": st.sampled_from([0, -1, 1.0, 1.5]),
    "multipleOf": st.sampled_from([1, 0, -1]),
    "pattern": st.sampled_from(["a+", "("]),
    "format": st.sampled_from(["date", 1]),
    "examples": st.sampled_from([[1], 1]),
    "description": st.sampled_from(["x", 1, None]),
    "unknown": st.sampled_from([1, {"type": "float"}]),
}


def _within(inner):
    return {
        "properties": st.dictionaries(st.sampled_from("ab"), inner, max_size=2) | st.just([]),
        "items": inner | st.sampled_from([True, 3, [], [{"type": "float"}]]),
        "anyOf": st.lists(inner, max_size=2),
        "not": inner | st.just(None),
        "additionalProperties": inner | st.sampled_from([False, "no"]),
        "prefixItems": st.lists(inner, max_size=1) | st.just({}),
    }


def _some(keywords):
    """One or two of the keywords: more, and nearly all schemas are invalid."""
    pairs = st.sampled_from(sorted(keywords)).flatmap(
        lambda key: st.tuples(st.just(key), keywords[key])
    )
    return st.lists(pairs, min_size=1, max_size=2).map(dict)


_schemas = st.recursive(
    _some(_plain_keywords), lambda inner: _some(_plain_keywords | _within(inner)), max_leaves=3
)


@given(_schemas)
@settings(max_examples=200, deadline=None)
def test_the_fast_check_refuses_what_the_newest_draft_does(schema):
    whole = {"type": "object", "properties": {"a": schema}}
    try:
        jsonschema.Draft202012Validator.check_schema(whole)
        valid = True
    except jsonschema.SchemaError:
        valid = False
    try:
        ToolDefinition("f", "", whole)
        assert valid
    except ToolDefinitionError as error:
        assert not valid, error


@given(_json)
@settings(max_examples=200, deadline=None)
def test_any_value_is_a_definition_or_the_one_error(value):
    for schema in (value, {"type": "object", "properties": {"a": value}}):
        try:
            (tool,) = read_tools([{"name": "f", "parameters": schema}])
        except ToolDefinitionError as error:
            assert "tools[0]" in str(error)
            continue
        json.dumps(tool.openai(), allow_nan=False)
        try:
            check_arguments(tool, {"a": 1})
        except ArgumentError:
            pass
