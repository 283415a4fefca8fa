"""Each rule of BFCL's checker on items made by hand."""

from __future__ import annotations

import pytest

from agents_jax.tools import Call
from agents_jax.tools.bfcl.checker import ERROR_TYPES, Verdict, check, standardise
from tests.agents_jax.tools.bfcl.made import function, item


def one(kind, allowed, value):
    """Error type for the value of one required parameter."""
    verdict = check(
        item([function(required=["a"], a=kind)], [{"f": {"a": allowed}}]), [Call("f", {"a": value})]
    )
    assert verdict.valid == (verdict.error_type is None)
    assert verdict.valid or verdict.error_type in ERROR_TYPES
    return verdict.error_type


@pytest.mark.parametrize(
    ("kind", "allowed", "value", "error"),
    [
        ("string", ["New York"], "new-york.", None),
        ("string", ["it's"], 'it"s', None),
        ("string", ["New York"], "York", "value_error:string"),
        ("string", ["1"], 1, "type_error:simple"),
        ("any", ["x"], "X", None),
        ("any", ["1"], 1, "type_error:simple"),
        ("integer", [5, 6], 6, None),
        ("integer", [5], 7, "value_error:others"),
        ("integer", [5], 5.0, "type_error:simple"),
        ("integer", [1], True, "type_error:simple"),
        ("float", [5.0], 5, None),
        ("float", [5.0], 5.5, "value_error:others"),
        ("float", [1.0], True, "type_error:simple"),
        ("boolean", [True], True, None),
        ("boolean", [True], 1, "type_error:simple"),
        ("boolean", [True], False, "value_error:others"),
        # A gold value of another type than the schema's is the name of a variable.
        ("integer", ["count"], "count", None),
        ("integer", ["count"], "Count", "value_error:others"),
        ("integer", ["count"], 5, "value_error:others"),
        ("integer", [None], None, None),
        ("string", [None], "x", "value_error:others"),
        (["array", "string"], [["New York", "Rome"]], ["new york", "rome."], None),
        (["array", "string"], [["a", "b"]], ["b", "a"], "value_error:list"),
        (["array", "string"], [["a", "b"]], ["a"], "value_error:list"),
        (["array", "string"], [["a"]], [1], "type_error:nested"),
        (["array", "string"], [["a"]], "a", "type_error:simple"),
        (["array", "integer"], [[1], [2]], [2], None),
        (["array", "integer"], [[1]], ["1"], "type_error:nested"),
        (["array", "float"], [[1.0]], [1], "type_error:nested"),
        (["array", "float"], [[1]], [1], None),  # the gold list's own type is also right
        (["array", "integer"], [["", 1]], [1], "value_error:list"),
        (["array", "integer"], [[1]], (1,), "type_error:simple"),
        (["tuple", "float"], [[1.0, 2.0]], (1.0, 2.0), None),
        (["tuple", "float"], [[1.0, 2.0]], [1.0, 2.0], None),
        # "" among the allowed values lets any elements pass the types, and is the empty list.
        (["array", "integer"], [[1], ""], ["1"], "value_error:list"),
        (["array", "integer"], [[1], ""], [], None),
        ("dict", [{"k": ["a", "b"]}], {"k": "B"}, None),
        ("dict", [{"k": [1]}, {"k": [2]}], {"k": 2}, None),
        ("dict", [{"k": ["a"]}], {"k": "c"}, "value_error:dict_value"),
        ("dict", [{"k": ["a"]}], {"k": "a", "m": 1}, "value_error:dict_key"),
        ("dict", [{"k": ["a"], "m": [1]}], {"k": "a"}, "value_error:dict_key"),
        ("dict", [{"k": ["a"], "m": [1]}], {"k": "z"}, "value_error:dict_key"),
        ("dict", [{"k": ["a"], "m": [1, ""]}], {"k": "a"}, None),
        ("dict", [""], {}, "value_error:dict"),
        ("dict", [{"k": [1]}], [1], "type_error:simple"),
        (["array", "dict"], [[{"k": [1]}, {"k": [2]}]], [{"k": 1}, {"k": 2}], None),
        (["array", "dict"], [[{"k": [1]}, {}]], [{"k": 2}, {}], "value_error:dict_value"),
        (["array", "dict"], [[{"k": [1]}]], [], "value_error:list_dict_count"),
        (["array", "dict"], [[{"k": [1]}]], [1], "type_error:nested"),
        (["array", "dict"], [[{"k": [1]}], ""], [1], "value_error:list_dict_count"),
        (["array", "dict"], ["", [{"k": [1]}]], [1], "type_error:nested"),
    ],
)  # fmt: skip
def test_values(kind, allowed, value, error):
    assert one(kind, allowed, value) == error


def test_names_and_parameters():
    question = item(
        [function("m.f", required=["a"], a="integer", b="integer", c="integer", d="integer")],
        [{"m.f": {"a": [1], "b": [2, ""], "c": [3]}}],
    )

    def error(name="m.f", **arguments):
        return check(question, [Call(name, arguments)]).error_type

    assert error(a=1, b=2, c=3) is None
    assert error(c=3, a=1) is None  # any order; b may be left out
    assert error("m_f", a=1, c=3) == "wrong_func_name"
    assert error("M.f", a=1, c=3) == "wrong_func_name"
    assert error(c=3) == "missing_required"
    assert error(a=1) == "missing_optional"  # in the answer without ""
    assert error(a=1, c=3, d=4) == "unexpected_param"  # in the schema, not in the answer
    assert error(a=1, c=3, e=4) == "unexpected_param"  # in neither
    assert error(e=5) == "missing_required"  # the first thing that is wrong


def test_number_of_calls():
    for category in ("simple_python", "multiple", "parallel", "live_multiple"):
        question = item([function(a="integer")], [{"f": {"a": [1]}}], category)
        right = Call("f", {"a": 1})
        assert check(question, [right]).valid
        assert check(question, []).error_type == "wrong_count"
        assert check(question, [right, right]).error_type == "wrong_count"


def test_multiple_takes_the_schema_of_the_gold_function():
    functions = [function("g", a="string"), function("f", a="float")]
    question = item(functions, [{"f": {"a": [1.0]}}], "multiple")
    assert check(question, [Call("f", {"a": 1})]).valid
    assert check(question, [Call("g", {"a": 1})]).error_type == "wrong_func_name"


def test_parallel_calls_match_in_any_order_each_once():
    question = item(
        [function(a="integer")],
        [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}],
        "parallel",
    )
    calls = [Call("f", {"a": 1}), Call("f", {"a": 2})]
    # Greedy as in BFCL: the first gold call takes the first call that fits, here the only one that
    # fits the second, too.
    assert check(question, calls).error_type == "cannot_find_match"
    assert check(question, calls[::-1]).valid
    verdict = check(question, [Call("f", {"a": 1}), Call("g")])
    assert verdict.error_type == "cannot_find_match" and "wrong_func_name" in verdict.message


def test_relevance_counts_calls_only():
    silent = item([function()], category="irrelevance")
    assert check(silent, []) == Verdict(True)
    assert check(silent, [Call("g")]).error_type == "irrelevance:called"
    due = item([function()], category="live_relevance")
    assert check(due, [Call("g")]).valid
    assert check(due, []).error_type == "relevance:not_called"


def test_a_huge_integer_for_a_float_is_wrong_not_an_error():
    assert one("float", [1.0], 2**1023) == "value_error:others"
    assert one("float", [1.0], 2**1024 - 1) == "type_error:simple"


def test_standardise():
    assert standardise("It's 5-6, a_b/c*d^e.") == 'it"s56abcde'


def test_bad_items_are_named():
    with pytest.raises(ValueError, match="category 'sql'"):
        check(item([function()], category="sql"), [])
    with pytest.raises(ValueError, match="type 'number' is unknown"):
        one("number", [1], 1)
    with pytest.raises(ValueError, match="'g' is not among"):
        check(item([function()], [{"g": {}}]), [Call("g")])
