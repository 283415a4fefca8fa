"""Functions in prompts and grammars; tokens as bytes."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import CHATML

from pangu_jax.inference.chat_protocol.fields import Fields
from pangu_jax.inference.chat_protocol.tokens import Offsets, TokenTexts
from pangu_jax.inference.chat_protocol.tools import (
    call_schema,
    either_schema,
    history_as_text,
    read_tools,
    reads_tools,
)
from pangu_jax.inference.server.sse import dump_json
from pangu_jax.weights.tokenizer_import import LoadedTokenizer, SpecialTokens

POINT = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/point"}},
    "required": ["at"],
    "$defs": {"point": {"type": "array", "items": {"type": "integer"}, "minItems": 2}},
}
TREE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["name"],
}
NOTHING = {"properties": {"city": {"type": "string"}}}


def tools(choice="required", **more):
    functions = {"go": POINT, "plant": TREE, "a.b-c": NOTHING}
    items = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name, parameters in functions.items()
    ]
    return read_tools(Fields({"tools": items, "tool_choice": choice} | more))


VALID = [
    {"name": "go", "arguments": {"at": [1, 2]}},
    {"name": "plant", "arguments": {"name": "a", "children": [{"name": "b", "children": []}]}},
    {"name": "a.b-c", "arguments": {"city": "Bonn"}},
]
INVALID = [
    {"name": "go", "arguments": {"at": [1]}},
    {"name": "go", "arguments": {"name": "a"}},
    {"name": "plant", "arguments": {"name": "a", "children": [{"children": []}]}},
    {"name": "walk", "arguments": {"at": [1, 2]}},
    {"name": "go"},
    {"name": "go", "arguments": {"at": [1, 2]}, "more": 1},
]


def test_forced_calls_with_references():
    """References of a function's schema still hold where it stands inside a larger one."""
    checker = jsonschema.Draft202012Validator(call_schema(tools()))
    assert all(checker.is_valid(call) for call in VALID)
    assert not any(checker.is_valid(call) for call in INVALID)
    named = tools({"type": "function", "function": {"name": "plant"}})
    checker = jsonschema.Draft202012Validator(call_schema(named))
    assert [checker.is_valid(call) for call in VALID] == [False, True, False]
    several = tools(parallel_tool_calls=True)
    checker = jsonschema.Draft202012Validator(call_schema(several))
    assert checker.is_valid(VALID) and not checker.is_valid([]) and not checker.is_valid(VALID[0])


def test_structured_answer_or_call():
    checker = jsonschema.Draft202012Validator(either_schema(POINT, tools("auto")))
    assert checker.is_valid({"at": [3, 4]}) and not checker.is_valid({"at": [3]})
    assert all(checker.is_valid(call) for call in VALID)


@pytest.mark.parametrize("parallel", [None, True])
def test_the_grammar_library_takes_the_schemas(parallel):
    llguidance = pytest.importorskip("llguidance")
    offered = tools(parallel_tool_calls=parallel)
    for schema in (call_schema(offered), either_schema(TREE, offered)):
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
        assert llguidance.LLMatcher.validate_grammar(grammar) == ""


def test_templates_are_read_for_what_they_take():
    assert not reads_tools(CHATML)
    assert reads_tools("{% if tools %}x{% endif %}")
    assert not reads_tools("{% set tools = [] %}{% if tools %}x{% endif %}")
    assert not reads_tools("about tools")


def test_history_of_several_calls_keeps_turns():
    call = {"function": {"name": "f", "arguments": {"a": "ü"}}}
    result = {"role": "tool", "content": "1", "tool_call_id": "x"}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        result,
        {**result, "content": "2"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "q"},
        result,
    ]
    plain = history_as_text(messages)
    assert [message["role"] for message in plain] == [
        "user", "assistant", "user", "assistant", "user", "user",
    ]  # fmt: skip
    written = '<tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call>'
    assert plain[1]["content"] == f"{written}\n{written}"
    answer = "<tool_response>\n{}\n</tool_response>"
    assert plain[2]["content"] == f"{answer.format(1)}\n{answer.format(2)}"
    assert plain[5]["content"] == answer.format(1)
    assert messages[1]["tool_calls"] == [call, call]  # what was given is as it was


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_bytes_of_tokens_are_the_text(loaded, text):
    texts, offsets = TokenTexts(loaded), Offsets(TokenTexts(loaded), start=5)
    ids = loaded.tokenizer.encode(text, add_special_tokens=False).ids
    pieces = [texts.bytes_of(i) for i in ids]
    assert b"".join(pieces) == text.encode()
    for index, token_id in enumerate(ids):
        # A token begins behind all characters that are complete before it.
        before = b"".join(pieces[:index]).decode("utf-8", "ignore")
        assert offsets.next(token_id) == 5 + len(before)


def test_marks_and_unknown_ids(loaded):
    texts = TokenTexts(loaded)
    assert texts.text_of(256) == "<|im_start|>" and texts.size == 258
    assert texts.bytes_of(10_000) == b""


def test_sentence_piece_tokens():
    from tokenizers import Tokenizer, decoders, models

    vocab = {"<unk>": 0, "▁the": 1, "<0xC3>": 2, "<0xA9>": 3, "é": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    texts = TokenTexts(LoadedTokenizer(tokenizer, SpecialTokens()))
    assert [texts.bytes_of(i) for i in range(1, 5)] == [b" the", b"\xc3", b"\xa9", "é".encode()]


@given(st.recursive(st.text() | st.integers(), lambda x: st.lists(x), max_leaves=5))
def test_json_of_any_text_is_utf8_and_reads_back(value):
    assert json.loads(dump_json(value).decode("utf-8")) == value


def test_half_a_surrogate_pair_stays_escaped():
    assert json.loads(dump_json(["\\\ud800"]).decode("utf-8")) == ["\\\ud800"]
