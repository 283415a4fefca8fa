"""Conversations with calls: both forms into records, what is refused, and on into fine-tuning."""

from __future__ import annotations

import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.tools import Call, parse_calls
from agents_jax.tools.conversation_builder import MISFIT, ConversationError
from agents_jax.tools.conversations import (
    from_openai,
    parse_conversation,
    read_conversations,
    training_record,
    write_training_records,
)
from agents_jax.tools.toolace import COMPLETED, RENAMED, from_toolace
from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.files import read_records
from pangu_jax.training.sft.records import parse_chat

DIALOGS = pathlib.Path(__file__).resolve().parents[4] / "shared/data/tools/toolace_dialogs"

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def call(name="weather", arguments='{"city": "Rome"}', id_="a"):
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def openai(*messages, tools=(WEATHER,)):
    return {"messages": list(messages), "tools": list(tools)}


USER = {"role": "user", "content": "Rome?"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [call()]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "Sunny."}


def test_openai_records():
    conversation = from_openai(openai(USER, CALLS, RESULT, ANSWER), "here")
    assert conversation.calls == (Call("weather", {"city": "Rome"}),)
    record = conversation.record()
    assert [m["role"] for m in record["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert record["messages"][1]["content"] == ""
    assert record["messages"][1]["tool_calls"] == [call(arguments={"city": "Rome"})]
    assert record["messages"][2] == {**RESULT, "name": "weather"}
    assert record["tools"] == [WEATHER]
    assert from_openai(record, "here") == conversation  # what is written is read alike
    as_text = {key: json.dumps(value) for key, value in record.items()}
    assert from_openai(as_text, "here") == conversation
    no_tools = from_openai(openai(USER, ANSWER, tools=()), "here")
    assert no_tools.tools == () and no_tools.calls == ()


@pytest.mark.parametrize(
    ("record", "reason", "text"),
    [
        (openai(), "no messages", r"here: 'messages' is \[\]"),
        ({"tools": []}, "no messages", "is null"),
        ({"messages": "[", "tools": []}, "not JSON", "'messages' is not JSON"),
        (openai("hello", ANSWER), "bad message", r"messages\[0\] is \"hello\""),
        (openai(USER), "no assistant's turn", "no turn of the assistant"),
        (openai({"role": "oracle", "content": "x"}, ANSWER), "unknown role", "allowed: system"),
        (openai({"role": "user", "content": [1]}, ANSWER), "content that is not text", "is .1."),
        (openai(USER, {"role": "assistant"}), "content that is not text", "is null"),
        (openai(USER, CALLS, tools=()), "call of a tool that is not on offer", "on offer: none"),
        (
            openai(USER, {**CALLS, "tool_calls": [call("wether")]}),
            "call of a tool that is not on offer",
            "calls 'wether'; on offer: weather",
        ),
        (
            openai(USER, {**CALLS, "tool_calls": [call(arguments='{"city": ')]}),
            "call that cannot be read",
            r"tool_calls\[0\]: not JSON",
        ),
        (
            openai(USER, {**CALLS, "tool_calls": [call(arguments="[1]")]}),
            "call that cannot be read",
            "not a JSON object",
        ),
        (openai(USER, {**CALLS, "tool_calls": ["f()"]}), "call that cannot be read", "is needed"),
        (openai(USER, {**CALLS, "tool_calls": [call(), call()]}), "ids of calls", "'a' twice"),
        (openai(USER, RESULT, ANSWER), "result without a call", "wait for a result: none"),
        (openai(USER, CALLS, RESULT, RESULT), "result without a call", 'is "a"'),
        (
            openai(USER, ANSWER, tools=[WEATHER, WEATHER]),
            "tools that are not taken",
            r"here: tools\[1\]: the name 'weather'",
        ),
        (openai(USER, ANSWER, tools=[{"name": "a b"}]), "tools that are not taken", "not allowed"),
    ],
)
def test_openai_records_that_are_refused(record, reason, text):
    with pytest.raises(ConversationError, match=text) as caught:
        from_openai(record, "here")
    assert caught.value.reason == reason and str(caught.value).startswith("here")


def test_misfits_are_noted_or_left_out(tmp_path):
    path = tmp_path / "chats.jsonl"
    bad = {**CALLS, "tool_calls": [call(arguments='{"city": 3}')]}
    lines = [openai(USER, CALLS), openai(USER, bad), openai(USER), openai(USER)]
    path.write_text("\n".join(map(json.dumps, lines)))
    reading = read_conversations(path)
    assert len(reading.conversations) == 2 and reading.notes == {MISFIT: 1}
    assert reading.refused == {"no assistant's turn": 2}
    assert reading.conversations[1].calls == (Call("weather", {"city": 3}),)
    assert str(reading).startswith("2 of 4 conversations read.\n  left out, no assistant's turn: 2")
    assert "chats.jsonl:3: no turn of the assistant" in str(reading)
    reading = read_conversations(path, drop_misfits=True)
    assert len(reading.conversations) == 1 and reading.notes == {}
    assert reading.refused == {MISFIT: 1, "no assistant's turn": 2}


def test_files_that_cannot_be_read_are_errors(tmp_path):
    (tmp_path / "torn.jsonl").write_text('{"messages": [\n')
    with pytest.raises(FineTuneError, match="torn.jsonl:1 is not JSON"):
        read_conversations(tmp_path / "torn.jsonl")
    with pytest.raises(FineTuneError, match="no file or folder"):
        read_conversations(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="allowed: auto, openai, toolace"):
        read_conversations(tmp_path, "sharegpt")


# ---- ToolACE

FUNCTIONS = [
    {
        "name": "Market Trends API", "description": "Trends.",
        "parameters": {"type": "dict", "properties": {
            "trend": {"type": "string", "enum": ["GAINERS"]}, "top": {"type": "int"}},
            "required": ["trend"]},
        "required": None,
    },
    {
        "name": "News API", "description": "News.",
        "parameters": {"type": "dict", "properties": {"about": {"type": "string"}},
                       "required": ["about"]},
    },
    {"name": "tags/list", "description": "Tags.", "parameters": {"type": "dict", "properties": {}}},
]  # fmt: skip


def toolace(*turns, functions=FUNCTIONS):
    listed = json.dumps(functions)
    return {
        "system": f"You call functions. It's a list you can invoke:\n{listed}. Should you [f(x)].",
        "conversations": [{"from": who, "value": text} for who, text in turns],
    }


def test_published_form_with_blanks_in_names():
    text = '[Market Trends API(trend="GAINERS, [News API(about=1)]", top=3), tags/list()]'
    conversation = from_toolace(
        toolace(
            ("user", "Trends?"),
            ("assistant", text),
            ("tool", '[{"name": "Market Trends API", "results": [1]}, {"name": "tags/list"}]'),
            ("assistant", "[1] stands first."),
        ),
        "here",
    )
    assert [tool.name for tool in conversation.tools] == [
        "Market_Trends_API",
        "News_API",
        "tags_list",
    ]
    assert conversation.tools[0].properties["top"] == {"type": "integer"}
    assert conversation.calls == (
        Call("Market_Trends_API", {"trend": "GAINERS, [News API(about=1)]", "top": 3}),
        Call("tags_list"),
    )
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["user", "assistant", "tool", "tool", "assistant"]
    assert json.loads(conversation.messages[2]["content"])["results"] == [1]
    assert conversation.messages[-1]["content"] == "[1] stands first."
    assert conversation.notes == {RENAMED: 3, MISFIT: 1}  # no such trend


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("News API", {"about": "x"}, "News_API"),
        ("API", {"about": "x"}, "News_API"),  # two end so; one takes these arguments
        ("API", {"trend": "GAINERS"}, "Market_Trends_API"),
        ("Trends API", {"trend": "GAINERS"}, "Market_Trends_API"),
        ("list", {}, "tags_list"),
        ("API", {"other": 1}, None),
        ("PI", {"about": "x"}, None),  # no word of its own
        ("Weather", {}, None),
    ],
)
def test_converted_form_with_broken_names(name, arguments, found):
    value = json.dumps({"name": name, "arguments": arguments})
    record = toolace(
        ("human", "?"), ("function_call", value), ("observation", "ok"), ("gpt", "Ok.")
    )
    if found is None:
        with pytest.raises(ConversationError, match=f"calls '{name}'") as caught:
            from_toolace(record, "here")
        assert caught.value.reason == "call of a tool that is not on offer"
        return
    conversation = from_toolace(record, "here")
    assert conversation.calls == (Call(found, arguments),)
    assert conversation.notes.get(COMPLETED, 0) == (name not in ("News API", "tags/list"))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"system": 3, "conversations": []}, "not ToolACE's form"),
        ({"system": "", "conversations": "x"}, "not ToolACE's form"),
        ({"system": 'Use [{"name": "f', "conversations": []}, "functions that cannot be read"),
        ({"system": "", "tools": "[3]", "conversations": []}, "functions that cannot be read"),
        (toolace(("human", "x"), functions=[FUNCTIONS[0]] * 2), "tools that are not taken"),
        (
            toolace(("gpt", "x"), functions=[{"name": "f", "parameters": {"properties": 3}}]),
            "tools that are not taken",
        ),
        (toolace(("robot", "x")), "unknown role"),
        (toolace(("human", None)), "bad message"),
        (toolace(("human", "x")), "no assistant's turn"),
        (toolace(("human", "x"), ("function_call", "not a call")), "call that cannot be read"),
        (toolace(("human", "x"), ("assistant", "[News API(about=)]")), "call that cannot be read"),
        (toolace(("human", "x"), ("tool", "[]"), ("gpt", "x")), "result without a call"),
        (
            toolace(("user", "x"), ("gpt", "[tags/list(), tags/list()]"), ("tool", "[1]")),
            "results that do not match their calls",
        ),
        (toolace(("gpt", "Hello.")), "begins with the assistant"),
        (
            toolace(("human", "x"), ("gpt", '[{"name": "x"}' * 9)),
            None,
        ),  # words, as far as can be told
    ],
)
def test_toolace_records_that_are_refused(record, reason):
    if reason is None:
        assert from_toolace(record, "here").calls == ()
        return
    with pytest.raises(ConversationError) as caught:
        from_toolace(record, "here")
    assert caught.value.reason == reason and str(caught.value).startswith("here")


def test_the_form_is_told_by_the_keys():
    assert parse_conversation(openai(USER, ANSWER), "here").tools[0].name == "weather"
    assert len(parse_conversation(toolace(("human", "?"), ("gpt", "Hi.")), "here").tools) == 3


_text = st.text(alphabet="[]{}(),=\"'af1 \n", max_size=30)


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool", "function_call"]), _text)))
@settings(max_examples=150, deadline=None)
def test_any_turns_give_a_conversation_or_the_one_error(turns):
    for record in (toolace(*turns), {"system": "".join(t for _, t in turns), "conversations": []}):
        try:
            conversation = from_toolace(record, "here")
        except ConversationError as error:
            assert error.reason and str(error).startswith("here")
            continue
        for style in ("native", "prompted"):
            parse_chat(training_record(conversation, style), "here")


# ---- into fine-tuning


def test_both_kinds_become_chats(tmp_path):
    conversations = [
        from_openai(openai(USER, CALLS, RESULT, ANSWER), "one"),
        from_toolace(
            toolace(("user", "?"), ("assistant", '[News API(about="x")]'), ("tool", "none")), "two"
        ),
    ]
    path = tmp_path / "train.jsonl"
    assert write_training_records(path, conversations, "native") == 2
    chats = [parse_chat(record, where) for where, record in read_records(path)]
    assert [len(chat.tools) for chat in chats] == [1, 3]
    assert chats[0].messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    for form in ("python", "json", "hermes"):
        write_training_records(path, conversations, form=form)
        chats = [parse_chat(record, where) for where, record in read_records(path)]
        for chat, conversation in zip(chats, conversations, strict=True):
            assert chat.tools is None and chat.messages[0]["role"] == "system"
            assert all(tool.name in chat.messages[0]["content"] for tool in conversation.tools)
            answer = next(m for m in chat.messages if m["role"] == "assistant")
            assert tuple(parse_calls(answer["content"])) == conversation.calls
    with pytest.raises(ValueError, match="allowed: native, prompted"):
        training_record(conversations[0], "other")


def test_real_dialogs():
    """Counts of 100 real ToolACE dialogs, whose conversion has cut the names of most functions."""
    if not DIALOGS.exists():
        pytest.skip("the ToolACE dialogs are not here (shared/data/tools)")
    reading = read_conversations(DIALOGS)
    assert len(reading.conversations) == 96
    assert reading.refused == {"call of a tool that is not on offer": 3, "result without a call": 1}
    assert reading.notes == {RENAMED: 344, COMPLETED: 153, MISFIT: 11}
    assert sum(len(c.calls) for c in reading.conversations) == 191
    for conversation in reading.conversations:
        for style in ("native", "prompted"):
            parse_chat(training_record(conversation, style), conversation.where)
