"""What is wrong with a request is said, with the right status and the field's name."""

import json

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import RunningServer, Script, ScriptedEngine, byte_tokenizer

from pangu_jax.inference import RequestError
from pangu_jax.inference.server import Limits

HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def server(loaded):
    engine = ScriptedEngine(loaded, context_length=100)
    limits = Limits(body_bytes=20_000, choices=8, stop=3)
    with RunningServer(engine, loaded, limits=limits, adapters=("poet",)) as running:
        yield running


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=20, trust_env=False) as client:
        yield client


def error_of(reply, status):
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


CHAT = [
    ({"messages": None}, "messages", "required"),
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": "Hi"}, "messages", '"Hi" is not allowed'),
    ({"messages": ["Hi"]}, "messages[0]", "must be a JSON object, not string"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "required"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'assistant'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "text parts"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "surrogate"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "text only",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "required"),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
        "not JSON",
    ),
    ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
    ({"prompt": "x"}, "prompt", "unknown field"),
    ({"temperature": "hot"}, "temperature", '"hot" is not allowed'),
    ({"temperature": -1}, "temperature", "-1 is not allowed"),
    ({"temperature": True}, "temperature", "true is not allowed"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_p": 1.5}, "top_p", "from 0 to 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "positive"),
    ({"presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
    ({"n": 0}, "n", "from 1 to 8"),
    ({"n": 9}, "n", "from 1 to 8"),
    ({"n": 1.0}, "n", "whole number"),
    ({"seed": 2**63}, "seed", "whole number"),
    ({"stop": ["a", "b", "c", "d"]}, "stop", "up to 3"),
    ({"stop": ""}, "stop", "none of them empty"),
    ({"stop": [1]}, "stop", "strings"),
    ({"stop_token_ids": [999]}, "stop_token_ids", "below 258"),
    ({"max_tokens": 0}, "max_tokens", "from 1"),
    ({"max_tokens": 10**30}, "max_tokens", "whole number"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "give one of them"),
    ({"logprobs": 3}, "logprobs", "true or false"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
    ({"stream": True, "stream_options": []}, "stream_options", "an object"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "does not support"),
    ({"functions": [{"name": "f"}]}, "functions", "use tools"),
    ({"modalities": ["audio"]}, "modalities", "text only"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    (
        {"response_format": {"type": "json_object"}, "guided_regex": "a"},
        "guided_regex",
        "conflicts with response_format",
    ),
    ({"guided_json": "{"}, "guided_json", "not JSON"),
    ({"guided_json": [1]}, "guided_json", "not array"),
    ({"guided_regex": "a", "tools": [TOOL]}, "guided_regex", "not together with tools"),
    ({"tools": [{}]}, "tools[0].function", "required"),
    ({"tools": [{"type": "x", "function": {}}]}, "tools[0].type", "'function'"),
    ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
    ({"tools": [{"function": {"name": "f", "parameters": 1}}]}, "tools[0].function.parameters", ""),
    ({"tools": [TOOL, TOOL]}, "tools", "two functions are named 'f'"),
    ({"tool_choice": "required"}, "tool_choice", "at least one tool"),
    ({"tool_choice": "any", "tools": [TOOL]}, "tool_choice", "required"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]},
        "tool_choice.function.name",
        "one of 'f'",
    ),
    (
        {"tool_choice": "required", "tools": [TOOL], "response_format": {"type": "json_object"}},
        "response_format",
        "forces a call",
    ),
    ({"adapters": {"nobody": 1}}, "adapters.nobody", "known: poet"),
    ({"adapters": {"poet": "1"}}, "adapters.poet", "a number"),
    ({"adapters": {"poet": 1}, "model": "poet"}, "adapters", "names an adapter already"),
    ({"model": 3}, "model", "a string"),
]


@pytest.mark.parametrize(("change", "param", "message"), CHAT, ids=lambda value: str(value)[:40])
def test_chat_fields(http, server, change, param, message):
    before = len(server.engine.requests)
    body = json.dumps({"model": "tiny", "messages": HELLO} | change)
    error = error_of(http.post("chat/completions", content=body), 400)
    assert error["param"] == param and message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert len(server.engine.requests) == before


COMPLETIONS = [
    ({"prompt": None}, "prompt", "required"),
    ({"prompt": []}, "prompt", "a text"),
    ({"prompt": {}}, "prompt", "a text"),
    ({"prompt": [1, "a"]}, "prompt", "not a token id"),
    ({"prompt": ["a", 1]}, "prompt", "give texts only"),
    ({"prompt": [[1], 1]}, "prompt", "give lists only"),
    ({"prompt": [[]]}, "prompt", "empty list"),
    ({"prompt": [258]}, "prompt", "258 is not a token id"),
    ({"prompt": [-1]}, "prompt", "-1 is not a token id"),
    ({"prompt": [True]}, "prompt", "true is not a token id"),
    ({"prompt": [1.5]}, "prompt", "1.5 is not a token id"),
    ({"prompt": ["a"] * 9}, "prompt", "at most 8"),
    ({"prompt": ["a"] * 5, "n": 2}, "n", "10 completions"),
    ({"best_of": 2}, "best_of", "use n"),
    ({"suffix": "x"}, "suffix", "does not support"),
    ({"logprobs": True}, "logprobs", "whole number"),
    ({"max_tokens": 0}, "max_tokens", "from 1"),
    ({"messages": HELLO}, "messages", "unknown field"),
    ({"echo": True, "logprobs": 1, "stream": True}, "echo", "without stream"),
]


@pytest.mark.parametrize(
    ("change", "param", "message"), COMPLETIONS, ids=lambda value: str(value)[:40]
)
def test_completion_fields(http, change, param, message):
    error = error_of(http.post("completions", json={"prompt": "x"} | change), 400)
    assert error["param"] == param and message in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": [}',
        b"\xff\xfe",
        b'{"temperature": NaN}',
        b"[" * 10_000,
        b'{"a":' * 3_000,
        b"1" * 10_000,
        b"[]",
        b"null",
        b'"text"',
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_bad_json(http, body, path):
    assert "ody" in error_of(http.post(path, content=body), 400)["message"]


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=60)
@given(st.data())
def test_any_value_in_any_field_gets_an_answer(http, server, data):
    from pangu_jax.inference.server.protocol import CHAT_FIELDS, COMPLETION_FIELDS

    path, known, base = data.draw(
        st.sampled_from(
            [
                ("chat/completions", CHAT_FIELDS, {"messages": HELLO}),
                ("completions", COMPLETION_FIELDS, {"prompt": "x"}),
            ]
        )
    )
    change = data.draw(st.dictionaries(st.sampled_from(known), _values, min_size=1, max_size=2))
    reply = http.post(path, content=json.dumps(base | change))
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        assert reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "change", [{"x" * 9000: 1}, {"model": "x" * 9000}, {"stop": "x" * 9000, "n": "x" * 9000}]
)
def test_messages_do_not_repeat_long_values(http, change):
    body = {"messages": HELLO} | change
    reply = http.post("chat/completions", json=body)
    assert reply.status_code in (400, 404) and len(reply.content) < 4000


def test_nulls_and_ignored_fields(http):
    body = {"messages": HELLO, "n": None, "tools": None, "logit_bias": {}, "stop": None}
    body |= {"user": "u", "metadata": {}, "store": True, "service_tier": "auto", "functions": None}
    assert http.post("chat/completions", json=body).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_oversized_prompts(server, stream):
    with server.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt="x" * 101, stream=stream)
        assert caught.value.code == "context_length_exceeded"
        assert "100 tokens" in str(caught.value) and "take 101" in str(caught.value)
        with pytest.raises(openai.BadRequestError, match=r"take 90 and 11 new ones .* 101"):
            client.completions.create(model="tiny", prompt=[1] * 90, max_tokens=11, stream=stream)
        with pytest.raises(openai.BadRequestError, match=r"\(prompt 1\)"):
            client.completions.create(model="tiny", prompt=["x", "x" * 101], stream=stream)
        with pytest.raises(openai.BadRequestError) as caught:
            message = [{"role": "user", "content": "x" * 100}]
            client.chat.completions.create(model="tiny", messages=message, stream=stream)
        assert caught.value.code == "context_length_exceeded"
        # The last one that fits.
        assert client.completions.create(model="tiny", prompt=[1] * 90, max_tokens=10).choices


def test_large_bodies(http, server):
    error = error_of(http.post("completions", json={"prompt": "x" * 20_000}), 413)
    assert error["code"] == "body_too_large" and "20000 bytes" in error["message"]

    def pieces():  # chunked: no length is said before
        for _ in range(30):
            yield b" " * 1000

    assert error_of(http.post("completions", content=pieces()), 413)


def test_paths_and_methods(http, server):
    assert "no /v1/nothing" in error_of(http.get("nothing"), 404)["message"]
    assert "GET is not allowed" in error_of(http.get("chat/completions"), 405)["message"]
    assert httpx.get(f"{server.root}/health", trust_env=False).json() == {"status": "ok"}


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_a_400(server, stream):
    engine = server.engine
    engine.reply = lambda request: Script(refuse=RequestError("this grammar cannot be expressed"))
    with server.client() as client:
        with pytest.raises(openai.BadRequestError, match="cannot be expressed"):
            client.chat.completions.create(model="tiny", messages=HELLO, n=2, stream=stream)
    engine.reply = lambda request: Script()


def test_an_engine_that_fails(server):
    engine = server.engine
    engine.reply = lambda request: Script(["a", "b", "c"], fail_at=0)
    kinds = {"model": "tiny", "messages": HELLO}
    with server.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(**kinds, stream=stream)
            assert "sk-secret" not in str(caught.value)
        engine.reply = lambda request: Script(["a", "b", "c"], fail_at=2)
        texts = []
        with pytest.raises(openai.APIError, match="engine failed"):
            for chunk in client.chat.completions.create(**kinds, stream=True):
                texts.append(chunk.choices[0].delta.content)
        assert texts == ["", "a", "b"]
        # One of several: the others are cancelled.
        engine.cancelled.clear()
        engine.reply = lambda request: (
            Script(fail_at=1) if request.id.endswith("-0") else Script(["x"] * 1000, delay=0.01)
        )
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**kinds, n=3)
        assert len(engine.cancelled) == 3 and engine.running == 0
    engine.reply = lambda request: Script()


def test_an_error_in_the_stream_is_an_event_and_the_stream_ends(http, server):
    server.engine.reply = lambda request: Script(["a", "b"], fail_at=1)
    body = {"prompt": "x", "stream": True}
    lines = http.post("completions", json=body).text.strip().split("\n\n")
    server.engine.reply = lambda request: Script()
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "engine_error"
    assert lines[-1] == "data: [DONE]"


def test_a_mistake_of_the_server_is_a_500_without_details(http, server, monkeypatch, caplog):
    from pangu_jax.inference.server import protocol

    def broken(fields):
        raise KeyError("sk-secret")

    monkeypatch.setattr(protocol, "read_messages", broken)
    error = error_of(http.post("chat/completions", json={"messages": HELLO}), 500)
    assert error["type"] == "server_error" and "secret" not in error["message"]
    assert any(record.exc_info for record in caplog.records)
    monkeypatch.undo()
    assert http.post("chat/completions", json={"messages": HELLO}).status_code == 200


def test_no_chat_template(loaded):
    bare = byte_tokenizer(None)
    with RunningServer(ScriptedEngine(bare), bare) as server, server.client() as client:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="tiny", messages=HELLO)
        assert client.completions.create(model="tiny", prompt="x").choices[0].text
