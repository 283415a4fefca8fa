"""Calls read from text: round trips, forms, and texts that try to do harm."""

from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.tools import Call, CallParseError, parse_calls, render_calls, same_calls
from agents_jax.tools.calls import MAX_CHARS
from agents_jax.tools.literals import MAX_DEPTH, MAX_INT_BITS

_names = st.sampled_from(["a", "unit", "ort_1", "größe", "x2"])
_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**MAX_INT_BITS) + 1, 2**MAX_INT_BITS - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
)
_keys = st.one_of(st.text(), st.integers(), st.booleans(), st.none())


def _values(keys, tuples):
    def deeper(inner):
        lists = st.lists(inner, max_size=3)
        forms = [lists, st.dictionaries(keys, inner, max_size=3)]
        return st.one_of(*forms, lists.map(tuple)) if tuples else st.one_of(*forms)

    return st.recursive(_plain, deeper, max_leaves=8)


def _calls(values):
    names = st.lists(st.sampled_from(["f", "math", "get_x"]), min_size=1, max_size=3)
    arguments = st.dictionaries(_names, values, max_size=3)
    return st.lists(st.builds(Call, names.map(".".join), arguments), max_size=3)


def _exactly(value):
    """With types and signs: 1, 1.0, True, 0.0 and -0.0 are five things."""
    return repr(value)


@given(_calls(_values(_keys, tuples=True)))
@settings(max_examples=200)
def test_python_text_gives_the_calls_back(calls):
    text = render_calls(calls)
    assert _exactly(parse_calls(text)) == _exactly(calls)
    assert _exactly(parse_calls(text, dialect="bfcl")) == _exactly(calls)
    assert _exactly(parse_calls(text, dialect="strict")) == _exactly(calls)


@given(_calls(_values(st.text(), tuples=False)), st.sampled_from(["json", "hermes"]))
@settings(max_examples=200)
def test_json_text_gives_the_calls_back(calls, form):
    if form == "hermes" and not calls:
        return  # no element, no call: the text is empty
    calls = [c for c in calls if "</tool_call>" not in repr(c)]
    for dialect in ("any", "strict"):
        read = parse_calls(render_calls(calls, form) or "[]", dialect=dialect)
        assert _exactly(read) == _exactly(calls)


def test_a_lone_surrogate_survives():
    calls = [Call("f", {"a": "\ud800 x"})]
    assert parse_calls(render_calls(calls)) == calls


@given(_calls(_values(_keys, tuples=True)))
def test_same_calls_forgets_order_only(calls):
    turned = [Call(c.name, dict(reversed(c.arguments.items()))) for c in reversed(calls)]
    assert same_calls(calls, turned)
    assert not same_calls(calls, [*turned, Call("one_more")])


def test_same_calls_tells_types_apart():
    assert not same_calls([Call("f", {"a": 1})], [Call("f", {"a": 1.0})])
    assert not same_calls([Call("f", {"a": [1]})], [Call("f", {"a": (1,)})])
    assert not same_calls([Call("f", {"a": {"k": 1}})], [Call("f", {"a": {"k": True}})])
    assert not same_calls([Call("f"), Call("f"), Call("g")], [Call("f"), Call("g"), Call("g")])


@pytest.mark.parametrize(
    "text",
    [
        '[f(a=1, b="x"), g()]',
        'f(a=1, b="x"), g()',
        '```python\n[f(a=1, b="x"), g()]\n```',
        '```[f(a=1, b="x"), g()]```',
        '`[f(a=1, b="x"), g()]`',
        "  \n[f(a=1, b='x'),\n g()]\n",
        '{"name": "f", "arguments": {"a": 1, "b": "x"}}\n'.join(["[", ', {"name": "g"}]']),
        '```json\n[{"function": "f", "parameters": {"a": 1, "b": "x"}}, {"function": "g"}]\n```',
        '[{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1, \\"b\\": '
        '\\"x\\"}"}}, {"name": "g", "arguments": {}}]',
        'Yes. <tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "x"}}\n</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {}}',
        # Llama 3
        '<|python_tag|>{"name": "f", "parameters": {"a": 1, "b": "x"}}; {"name": "g", '
        '"parameters": {}}<|eom_id|>',
        '{"name": "f", "parameters": {"a": 1, "b": "x"}};\n{"name": "g", "parameters": {}};',
        '{"name": "f", "parameters": {"a": 1, "b": "x"}}\n{"name": "g"}<|eot_id|>',
        '<|python_tag|>f(a=1, b="x"), g()',
        # Mistral
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1, "b": "x"}}, {"name": "g"}]</s>',
        'Yes.[TOOL_CALLS][{"name": "f", "arguments": {"a": 1, "b": "x"}}, {"name": "g"}] Done.',
        '[TOOL_CALLS]f[ARGS]{"a": 1, "b": "x"}[TOOL_CALLS]g{}',
        '[TOOL_CALLS]f[CALL_ID]a1B2[ARGS]{"a": 1, "b": "x"} [TOOL_CALLS] g {}',
        # Qwen
        '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "x"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "g", "arguments": {}}\n</tool_call><|im_end|>',
    ],
)
def test_forms(text):
    assert parse_calls(text) == [Call("f", {"a": 1, "b": "x"}), Call("g")]


@pytest.mark.parametrize(
    "text",
    [
        '[f(a=1, b="x"), g()]',
        ' [f(a=1, b="x"), g()]\n',
        '[{"name": "f", "arguments": {"a": 1, "b": "x"}}, {"name": "g", "arguments": {}}]',
        '{"name": "f", "parameters": {"a": 1, "b": "x"}}; {"name": "g", "parameters": {}}',
        '<|python_tag|>{"name": "f", "parameters": {"a": 1, "b": "x"}};{"name": "g", '
        '"parameters": {}}',
        '<|python_tag|>f(a=1, b="x"), g()',
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1, "b": "x"}}, '
        '{"name": "g", "arguments": {}}]',
        '[TOOL_CALLS]f[ARGS]{"a": 1, "b": "x"}[TOOL_CALLS]g[ARGS]{}',
        '<tool_call>{"name": "f", "arguments": {"a": 1, "b": "x"}}</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
    ],
)
def test_strict_takes_whole_texts_of_every_form(text):
    assert parse_calls(text, dialect="strict") == [Call("f", {"a": 1, "b": "x"}), Call("g")]
    assert parse_calls(text) == [Call("f", {"a": 1, "b": "x"}), Call("g")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("f(a=1)", "begin as a list"),
        ("f(a=1), g()", "begin as a list"),
        ("```python\n[f(a=1)]\n```", "begin as a list"),
        ("Sure: [f(a=1)]", "begin as a list"),
        ("[f(a=x)]", "Name is not a literal"),
        ("[f(a=1 + 2)]", "BinOp is not a literal"),
        ("[f(a=-(1 + 2))]", "UnaryOp is not a literal"),
        ("[f(a=g(b=1))]", "Call is not a literal"),
        ("[f(a={x: 1})]", "Name is not a literal"),
        ("[f(a=...)]", "Constant is not a literal"),
        ("[f(a=1)], [g()]", "where a call should"),
        ('[{"name": "f"}]', "has the keys name;"),
        ('{"name": "f", "arguments": {}, "id": 1}', "has the keys arguments, id, name"),
        ('{"type": "function", "function": {"name": "f", "arguments": {}}}', "has the keys"),
        ('{"name": "f", "arguments": "{}"}', "not an object"),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "key twice"),
        ('{"name": "f", "arguments": {}};', "text stands after"),
        ('{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}', "text stands after"),
        ('<tool_call>{"name": "f", "arguments": {}}', "not closed"),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call> so', "stands beside"),
        ('<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', "not one JSON object"),
        ('I will. [TOOL_CALLS][{"name": "f", "arguments": {}}]', "begin as a list"),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}] so', "beside the calls"),
        ('[TOOL_CALLS]{"name": "f", "arguments": {}}', "not a list"),
        ("<|python_tag|>", "nothing stands after"),
        ("", "begin as a list"),
    ],
)
def test_strict_refuses(text, reason):
    with pytest.raises(CallParseError, match=reason):
        parse_calls(text, dialect="strict")


def test_a_mark_within_an_argument_is_text():
    for text in (
        '[f(a="[TOOL_CALLS]<|python_tag|>")]',
        '[{"name": "f", "arguments": {"a": "[TOOL_CALLS]<|python_tag|>"}}]',
        '[TOOL_CALLS]f[ARGS]{"a": "[TOOL_CALLS]<|python_tag|>"}',
    ):
        for dialect in ("any", "strict"):
            (call,) = parse_calls(text, dialect=dialect)
            assert call == Call("f", {"a": "[TOOL_CALLS]<|python_tag|>"})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "piece", ["{};", '{"name":"f"};', "[TOOL_CALLS]f{}", "<tool_call>", "[TOOL_CALLS]f ", "f ", " "]
)
def test_long_texts_take_no_long_time(piece):
    for text in (
        piece * (MAX_CHARS // len(piece)),
        "[TOOL_CALLS]f" + piece * (20_000 // len(piece)),
    ):
        for dialect in ("any", "strict"):
            try:
                parse_calls(text, dialect=dialect)
            except CallParseError:
                pass


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("2**10", 1024),
        ("-3", -3),
        ("+3", 3),
        ("-(2 + 1)", -3),
        ("1 / 4", 0.25),
        ("7 // 2 * 2 % 4", 2),
        ("10**-2", 0.01),
        ("'a' + 'b'", "ab"),
        ("-2.5e3", -2500.0),
        ("true", "true"),
        ("{x: 1, 'y': (2,), -1: None}", {"x": 1, "y": (2,), -1: None}),
        ("g(b=1)", {"g": {"b": 1}}),
        ("g(1)", "g(1)"),
        ("x['y']", "x['y']"),
        ("...", "..."),
        ("'\\d'", "\\d"),
    ],
)
def test_values(source, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (call,) = parse_calls(f"f(a={source})")
    assert _exactly(call.arguments["a"]) == _exactly(value)


def test_as_bfcl_decodes():
    def bfcl(text):
        return parse_calls(text, dialect="bfcl")

    assert bfcl("f(a=1), g(b=[2])") == [Call("f", {"a": 1}), Call("g", {"b": [2]})]
    assert bfcl("[f(a=1)") == [Call("f", {"a": 1})]
    assert bfcl("```[f(1, a=2, a=3)]```\n") == [Call("f", {"a": 3})]
    assert bfcl("") == []
    for text in ('[{"name": "f"}]', "No function fits.", "f", "f(a=-(1 + 2))", "f()."):
        with pytest.raises(CallParseError):
            bfcl(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("f(1)", "positional"),
        ("f(a=1, a=2)", "twice"),
        ("f(**{'a': 1})", r"\*\*"),
        ("f(a={**b})", r"\*\*"),
        ("f()()", "is called"),
        ("[f(), 3]", "where a call should"),
        ("f(a=9**9**9)", "too large"),
        ("f(a=2**1025)", "too large"),
        ("f(a=(10**300)*(10**300))", "bits"),
        ("f(a=2.0**5000)", "failed"),
        ("f(a=(-8)**0.5)", "finite and real"),
        ("f(a=1e999)", "finite"),
        ("f(a=1/0)", "division"),
        ("f(a='x'*10**9)", "not a number"),
        ("f(a='%d' % 3)", "not a number"),
        ("f(a=b+c)", "literal"),
        ("f(a=1 << 5)", "literal"),
        ("f(a=().__class__)", "literal"),
        ("f(a=[x for x in y])", "literal"),
        ("f(a=lambda: 1)", "literal"),
        ("f(a=f'{x}')", "literal"),
        ("f(a=b'x')", "bytes"),
        ("f(a=3j)", "complex"),
        ("f(a={[]: 1})", "literal"),
        ("f(a=" + "9" * 5000 + ")", "not Python|bits"),
        ("f(a=0x" + "f" * 5000 + ")", "bits"),
        ("f(a=" + "[" * 200 + "]" * 200 + ")", f"more than {MAX_DEPTH}"),
        ("f(a=" + "1+" * 3000 + "1)", "deep|not Python"),
        ("f(a=" + "-" * 20_000 + "1)", "deep|not Python"),
        ("f(a=" + "x[0]" + "[0]" * 3000 + ")", "deep|not Python"),
        ("x" + ".x" * 10_000 + "()", "not Python"),
        ("f(a=1" + " if 1 else 1" * 2000 + ")", "literal|not Python"),
        ("f(a=1\0)", "not Python"),
        ("\ud800()", "not Python"),
        ("f" * (MAX_CHARS + 1), "characters"),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN"),
        ('{"name": "f", "arguments": {"a": 1e999}}', "finite"),
        ('{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}", "not JSON|bits"),
        ('{"name": "f", "arguments": [1]}', "not a JSON object"),
        ('{"name": 3}', "no 'name'"),
        ('[{"name": "f"}, 4]', "where a call should"),
        ('{"a":' * 5000, f"more than {MAX_DEPTH}"),
        ("<tool_call>f()</tool_call>", "not JSON"),
        ("<tool_call>", "not JSON"),
    ],
)
@pytest.mark.timeout(60)
def test_refused_with_a_reason(text, reason):
    with pytest.raises(CallParseError, match=reason):
        parse_calls(text)


def test_nothing_is_executed(tmp_path):
    target = tmp_path / "written"
    for source in (
        f"open({str(target)!r}, 'w')",
        f"__import__('pathlib').Path({str(target)!r}).touch()",
        f"[open({str(target)!r}, 'w')][0]",
        f"1 + open({str(target)!r}, 'w')",
        f"(lambda: open({str(target)!r}, 'w'))()",
        f"g(b=open({str(target)!r}, 'w'))",
    ):
        for dialect in ("any", "bfcl", "strict"):
            try:
                calls = parse_calls(f"[f(a={source})]", dialect=dialect)
            except CallParseError:
                continue
            assert isinstance(calls[0].arguments["a"], (str, dict))  # source text, nothing more
    assert not target.exists()


_FRAGMENTS = [
    "f", "(", ")", "[", "]", "{", "}", "a=", "1", "-", "+", "**", "*", "9", "'", '"', '"""', "\\",
    ",", ":", ".", "x", "lambda ", "if ", " else ", "not ", "await ", "yield ", "`", "```", "\n",
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", ";",
    '{"name": "f"', '"arguments": ', "NaN", "0x", "1e9", "#", "\0",
    "\ud800", "__class__", ":=", "f'{", "...", "@", "%", "~", "=", "True", "b'", " ", "_", "٣",
]  # fmt: skip


@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(_FRAGMENTS), max_size=40).map("".join),
        st.tuples(st.sampled_from(_FRAGMENTS), st.integers(0, 3000)).map(lambda t: t[0] * t[1]),
    ),
    st.sampled_from(["any", "bfcl", "strict"]),
)
@settings(max_examples=400)
def test_any_text_gives_calls_or_the_one_error(text, dialect):
    for candidate in (text, f"[f(a={text})]"):
        try:
            calls = parse_calls(candidate, dialect=dialect)
        except CallParseError as error:
            assert str(error)
            continue
        assert all(isinstance(c, Call) and c.name for c in calls)
        if all(n.isidentifier() for c in calls for n in c.name.split(".")):
            render_calls(calls, "json")  # what was read can be written


def test_unwritable_calls_are_named():
    with pytest.raises(ValueError, match="'from' .* form='json'"):
        render_calls([Call("f", {"from": 1})])
    with pytest.raises(ValueError, match="'a-b'"):
        render_calls([Call("a-b")])
    for value in (math.nan, math.inf, 2**1024, {1, 2}, b"x"):
        for form in ("python", "json"):
            with pytest.raises(ValueError, match="cannot be written"):
                render_calls([Call("f", {"a": [value]})], form)
    with pytest.raises(ValueError, match="allowed: python, json, hermes"):
        render_calls([], "xml")
    with pytest.raises(ValueError, match="allowed: any, bfcl, strict"):
        parse_calls("f()", dialect="other")
