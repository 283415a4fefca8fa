"""Records to chats and pairs: every format, every mistake with its place."""

import gzip
import json

import polars as pl
import pytest

from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.files import read_records
from pangu_jax.training.sft.records import Columns, parse_chat, parse_pair

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def said(chat):
    return [(m["role"], m["content"]) for m in chat.messages]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"messages": json.dumps(TURNS)},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
    ],
    ids=["messages", "messages as text", "sharegpt", "prompt", "prompt as messages"],
)
def test_every_format_gives_the_same_chat(record):
    assert said(parse_chat(record, "f:1")) == [("user", "q"), ("assistant", "a")]


def test_tools_and_calls_are_kept_and_nulls_of_parquet_are_not():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    record = {
        "messages": [
            {"role": "user", "content": "q", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": json.dumps([{"name": "f"}]),
    }
    chat = parse_chat(record, "f:1")
    assert "tool_calls" not in chat.messages[0]
    assert chat.messages[1]["content"] == ""
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert chat.tools == ({"name": "f"},)


def test_columns_can_be_named():
    record = {"dialogue": TURNS, "share": 0.5}
    chat = parse_chat(record, "f:1", Columns(messages="dialogue", weight="share"))
    assert said(chat)[1] == ("assistant", "a")
    assert chat.weight == 0.5


@pytest.mark.parametrize(
    "record, words",
    [
        ({"text": "hello"}, ["'text'", "'messages'", "--config.data.columns"]),
        ({}, ["nothing", "'messages'"]),
        ({"messages": []}, ["'messages' is empty"]),
        ({"messages": 3}, ["3 (int)", "list of messages"]),
        ({"messages": ["hi"]}, ["messages[0]", "'hi' (str)"]),
        ({"messages": "[{"}, ["not JSON"]),
        ({"messages": [{"role": "bot", "content": "x"}]}, ["role 'bot'", "assistant"]),
        ({"messages": [{"content": "x"}]}, ["role None"]),
        ({"messages": [{"role": "user", "content": 5}]}, ["'content' is 5 (int)", "messages[0]"]),
        ({"messages": [{"role": "user", "content": None}]}, ["None (NoneType)", "text is needed"]),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None}]}, ["messages[1]"]),
        ({"messages": [TURNS[0]]}, ["no assistant's turn", "roles: user"]),
        ({"messages": [TURNS[1], TURNS[0]]}, ["begins with an assistant's turn"]),
        ({"messages": TURNS, "tools": [1]}, ["'tools'"]),
        ({"messages": TURNS, "tools": "{"}, ["'tools'", "not JSON"]),
        ({"messages": TURNS, "weight": -1}, ["'weight' is -1"]),
        ({"messages": TURNS, "weight": float("nan")}, ["'weight' is nan"]),
        ({"messages": TURNS, "weight": "1"}, ["'weight' is '1'"]),
        ({"conversations": [{"from": "alien", "value": "x"}]}, ["'alien'"]),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ["--config.objective=dpo"]),
    ],
)
def test_mistakes_name_the_place_and_what_is_needed(record, words):
    with pytest.raises(FineTuneError) as caught:
        parse_chat(record, "data.jsonl:7")
    for word in ["data.jsonl:7", *words]:
        assert word in str(caught.value)


def test_raw_text_is_only_prompt_and_completion():
    chat = parse_chat({"prompt": "q", "completion": "a"}, "f:1", raw=True)
    assert chat.raw and [m["content"] for m in chat.messages] == ["q", "a"]
    with pytest.raises(FineTuneError, match="'completion' is 3"):
        parse_chat({"prompt": "q", "completion": 3}, "f:1", raw=True)
    with pytest.raises(FineTuneError, match="template=none"):
        parse_chat({"messages": TURNS}, "f:1", raw=True)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [TURNS[1] | {"content": "b"}]},
        {"chosen": TURNS, "rejected": [TURNS[0], TURNS[1] | {"content": "b"}]},
        {"prompt": "q", "chosen": TURNS, "rejected": [TURNS[0], TURNS[1] | {"content": "b"}]},
    ],
    ids=["text", "messages", "whole chats", "prompt repeated"],
)
def test_every_format_gives_the_same_pair(record):
    pair = parse_pair(record, "f:1")
    assert said(pair.chosen) == [("user", "q"), ("assistant", "a")]
    assert said(pair.rejected) == [("user", "q"), ("assistant", "b")]


@pytest.mark.parametrize(
    "record, words",
    [
        ({"messages": TURNS}, ["'chosen' and 'rejected'", "messages"]),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, ["the same"]),
        ({"chosen": TURNS, "rejected": [TURNS[0] | {"content": "other"}, TURNS[1]]}, ["differ"]),
        ({"prompt": "q", "chosen": [], "rejected": "a"}, ["'chosen' is empty"]),
        ({"prompt": "q", "chosen": TURNS[:1], "rejected": "a"}, ["ends with the role 'user'"]),
        ({"chosen": "a", "rejected": "b"}, ["begins with an assistant's turn"]),
    ],
)
def test_mistakes_of_pairs(record, words):
    with pytest.raises(FineTuneError) as caught:
        parse_pair(record, "data.jsonl:7")
    for word in ["data.jsonl:7", *words]:
        assert word in str(caught.value)


def test_files_of_every_kind_give_the_same_records(tmp_path):
    records = [{"messages": TURNS}, {"messages": TURNS * 2}]
    lines = "\n\n".join(json.dumps(r) for r in records) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(" " + json.dumps(records))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pl.DataFrame(records).write_parquet(tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.json", "c.jsonl.gz", "d.parquet"):
        found = [record for _, record in read_records(tmp_path / name)]
        assert [parse_chat(r, "").messages for r in found] == [
            parse_chat(r, "").messages for r in records
        ]
    assert len(list(read_records(tmp_path))) == 8
    places = [where.removeprefix(str(tmp_path)) for where, _ in read_records(tmp_path)]
    assert places == ["/a.jsonl:1", "/a.jsonl:3", "/b.json[0]", "/b.json[1]", "/c.jsonl.gz:1",
                      "/c.jsonl.gz:3", "/d.parquet:row 0", "/d.parquet:row 1"]  # fmt: skip


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", b'{"a": 1}\n{"a":\n', ["a.jsonl:2", "not JSON"]),
        ("a.jsonl", b"[1]\n", ["a.jsonl:1", "list"]),
        ("a.jsonl", b'{"a": "\xff"}\n', ["a.jsonl:1", "UTF-8"]),
        ("a.json", b"[1, 2]", ["a.json[0]", "int"]),
        ("a.csv", b"x", [".parquet", "no known kind"]),
        ("a.parquet", b"junk", ["a.parquet", "Parquet"]),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FineTuneError) as caught:
        list(read_records(tmp_path / name))
    for word in words:
        assert word in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(FineTuneError, match="no file or folder .*nowhere"):
        list(read_records(tmp_path / "nowhere.jsonl"))
    with pytest.raises(FineTuneError, match="holds no file"):
        list(read_records(tmp_path))
