"""Tool calls from text: the three forms, what stays content, and independence of the pieces."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pangu_jax.inference.chat_protocol.tool_parsing import (
    ToolCall,
    ToolCallReader,
    parse_tool_calls,
)

NAMES = ("get_weather", "math.add", "f")
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["</tool_call>", "<tool_call>", "[f(a=1)]", '"', "\\"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abcdé ", max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
_identifiers = st.sampled_from(["a", "b", "value", "käse"])
_calls = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(_identifiers, _json, max_size=3)),
    min_size=1,
    max_size=3,
)


def unpacked(calls):
    return [(call.name, json.loads(call.arguments)) for call in calls]


def objects(calls):
    return [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]


@given(_calls, st.booleans())
def test_hermes_round_trip(calls, closed):
    text = "\n".join(f"<tool_call>\n{item}\n</tool_call>" for item in objects(calls))
    if not closed:  # the model ended its turn before the last tag
        text = text.removesuffix("\n</tool_call>")
    content, found = parse_tool_calls(text, NAMES)
    assert content is None
    assert unpacked(found) == calls


@given(_calls)
def test_bare_json_round_trip(calls):
    written = objects(calls)
    assert unpacked(parse_tool_calls(f" {written[0]}\n", NAMES)[1]) == calls[:1]
    assert unpacked(parse_tool_calls(f"[{','.join(written)}]", NAMES)[1]) == calls


@given(_calls)
def test_python_round_trip(calls):
    written = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    )
    content, found = parse_tool_calls(f"[{', '.join(written)}]", NAMES)
    assert content is None
    assert unpacked(found) == calls


_fragments = st.lists(
    st.sampled_from(
        [
            "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"a": 1}}', "[f(a=1)]",
            "{", "}", "[", "]", '"', " ", "\n", "text", "<tool", "</tool_call", "<",
            '{"name": "f", "arguments": {"a": "</tool_call>"}}', '{"name": 1}',
        ]
    ),
    max_size=8,
).map("".join)  # fmt: skip


@given(st.one_of(_fragments, _calls.map(lambda c: "Sure.\n" + objects(c)[0])), st.data())
@example('<tool_call>{"name": "f", "arguments": {}}</tool_call> and', None)
def test_pieces_do_not_matter(text, data):
    reader, pieces, rest = ToolCallReader(NAMES), [], text
    while rest:
        size = 1 if data is None else data.draw(st.integers(1, len(rest)))
        pieces += reader.feed(rest[:size])
        rest = rest[size:]
    pieces += reader.finish()
    content = "".join(item for item in pieces if isinstance(item, str)) or None
    calls = [item for item in pieces if isinstance(item, ToolCall)]
    assert (content, calls) == parse_tool_calls(text, NAMES)
    if not calls:
        assert (content or "") == text  # not a character is lost


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        "",
        '{"name": "unknown", "arguments": {}}',
        '{"answer": 42}',
        '{"name": "f", "arguments": 3}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '[{"name": "f", "arguments": {}}, 3]',
        '<tool_call>{"name": "f", "arguments": {}</tool_call>',
        "<tool_call>f(1)</tool_call>",
        "[f(1)]",
        "[f(**{'a': 1})]",
        "[f(a=g())]",
        "[f(a={1, 2})]",
        "[f(a=b'x')]",
        "[f(a=1+2j)]",
        "[f(a=1e999)]",
        "[f(a={1: 2})]",
        "[__import__('os').system('true')]",
        "[f()(a=1)]",
        "[]",
        "[" * 100_000,
        "[f(a=" + "(" * 500,
        '{"name": "f", "arguments": ' + "[" * 50_000,
    ],
)
def test_what_does_not_parse_stays_content(text):
    assert parse_tool_calls(text, NAMES) == (text or None, [])


def test_text_around_calls_and_order():
    text = 'Let me see.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\nand\n'
    content, calls = parse_tool_calls(text + text, NAMES)
    assert content == "Let me see.\n\nand\nLet me see.\n\nand"
    assert len(calls) == 2
    content, calls = parse_tool_calls(text + text.replace("1", "2"), NAMES, parallel=False)
    assert unpacked(calls) == [("f", {"a": 1})]


def test_other_spellings():
    assert unpacked(parse_tool_calls('{"name": "f", "parameters": {"a": 1}}', NAMES)[1]) == [
        ("f", {"a": 1})
    ]
    wrapped = '{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}'
    assert unpacked(parse_tool_calls(wrapped, NAMES)[1]) == [("f", {"a": 1})]
    # A tag says that it is a call, so its name need not be on offer.
    tagged = '<tool_call>{"name": "other", "arguments": {}}</tool_call>'
    assert unpacked(parse_tool_calls(tagged, NAMES)[1]) == [("other", {})]


def test_plain_text_is_not_held_back():
    reader = ToolCallReader(NAMES)
    assert reader.feed("Hello <") == ["Hello"]
    assert reader.feed("b> you") == [" <b> you"]
    assert reader.finish() == []
