"""Chat and completions through the official client over a socket."""

import asyncio
import json
import threading

import openai
import pytest
from scripted_engine import RunningServer, Script, ScriptedEngine, byte_tokenizer, logprob, wait_for

from pangu_jax.inference.chat_protocol.tokens import TokenTexts

HELLO = [{"role": "user", "content": "Hi"}]
PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Berlin"}}\n</tool_call>'


@pytest.fixture(scope="module")
def server(loaded):
    with RunningServer(ScriptedEngine(loaded), loaded, adapters=("poet", "pirate")) as running:
        yield running


@pytest.fixture
def engine(server):
    """The server's engine, with nothing recorded and the ordinary script."""
    engine = server.engine
    wait_for(lambda: engine.running == 0)
    engine.requests.clear()
    engine.cancelled.clear()
    engine.finished.clear()
    engine.most_running = engine.produced = 0
    engine.reply = lambda request: Script()
    return engine


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def last(engine):
    return engine.requests[-1].sampling


def test_chat(engine, client):
    engine.reply = lambda request: Script(cached=7)
    reply = client.chat.completions.create(model="tiny", messages=HELLO)
    assert reply.object == "chat.completion" and reply.model == "tiny"
    choice = reply.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello, world")
    assert choice.finish_reason == "stop" and choice.logprobs is None
    assert choice.message.tool_calls is None
    assert engine.text(engine.requests[0]) == PROMPT
    size = len(engine.requests[0].prompt_ids)
    assert size == len(PROMPT) - 2 * len("<|im_start|>") - len("<|im_end|>") + 3
    assert reply.usage.prompt_tokens == size
    assert reply.usage.completion_tokens == len("Hello, world")
    assert reply.usage.total_tokens == size + len("Hello, world")
    assert reply.usage.prompt_tokens_details.cached_tokens == 7
    sampling = last(engine)
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, None)
    assert sampling.logprobs is None and sampling.grammar is None and sampling.stop == ()


def test_chat_stream(engine, client):
    engine.reply = lambda request: Script(cached=3)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert texts == ["Hello", ", ", "world"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
    assert len(without) == len(chunks) - 1 and without[-1].usage is None


def test_sampling_arrives(engine, client):
    client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=5,
        stop=["a", "b"],
        user="someone",
        metadata={"a": "b"},
        extra_body={
            "top_k": 10**6,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "ignore_eos": True,
            "stop_token_ids": [3],
            "guided_regex": "[a-z]+",
        },
    )
    got = last(engine)
    assert (got.max_tokens, got.temperature, got.top_p, got.min_p) == (9, 0.5, 0.25, 0.125)
    assert (got.presence_penalty, got.frequency_penalty) == (0.5, -0.5)
    assert got.repetition_penalty == 1.5 and got.top_k == 258  # the vocabulary's size
    assert (got.seed, got.stop, got.stop_token_ids, got.ignore_eos) == (5, ("a", "b"), (3,), True)
    assert (got.grammar.kind, got.grammar.source) == ("regex", "[a-z]+")
    client.chat.completions.create(model="tiny", messages=HELLO, stop="x", max_tokens=3)
    assert last(engine).stop == ("x",) and last(engine).max_tokens == 3
    client.chat.completions.create(model="tiny", messages=HELLO)
    client.chat.completions.create(model="tiny", messages=HELLO)
    assert engine.requests[-1].sampling.seed != engine.requests[-2].sampling.seed


def test_n_runs_side_by_side_with_seeds_of_their_own(engine, client):
    engine.reply = lambda request: Script([str(request.sampling.seed)] * 3, delay=0.02)
    reply = client.chat.completions.create(model="tiny", messages=HELLO, n=4, seed=10)
    assert [choice.message.content for choice in reply.choices] == [
        str(s) * 3 for s in range(10, 14)
    ]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert engine.most_running == 4
    assert len({request.id for request in engine.requests}) == 4
    assert reply.usage.prompt_tokens == len(engine.requests[0].prompt_ids)
    assert reply.usage.completion_tokens == 4 * 6
    texts = {}
    for chunk in client.chat.completions.create(
        model="tiny", messages=HELLO, n=3, seed=2**63 - 1, stream=True
    ):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    # The largest seed is all ones below 2**31, and the next ones begin again at 0.
    assert texts == {0: str(2**31 - 1) * 3, 1: "000", 2: "111"}


def test_chat_logprobs(engine, client, loaded):
    engine.reply = lambda request: Script(["aé", "z"])
    texts = TokenTexts(loaded)
    kinds = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**kinds).choices[0].logprobs.content
    ids = loaded.tokenizer.encode("aéz").ids
    assert [token.token for token in whole] == ["a", "\ufffd", "\ufffd", "z"]
    assert bytes(byte for token in whole for byte in token.bytes) == "aéz".encode()
    for token, token_id in zip(whole, ids, strict=True):
        known = logprob(token_id, 2)
        assert token.logprob == known.logprob
        assert [(top.token, top.logprob) for top in token.top_logprobs] == [
            (texts.text_of(i), value) for i, value in known.top
        ]
    streamed = []
    for chunk in client.chat.completions.create(**kinds, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == whole
    only = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True)
    assert last(engine).logprobs == 0
    assert only.choices[0].logprobs.content[0].top_logprobs == []


def test_impossible_logprobs_are_still_json(engine, client, monkeypatch):
    import scripted_engine

    from pangu_jax.inference import TokenLogprob

    endless = TokenLogprob(65, -float("inf"), ((66, -float("inf")),))
    monkeypatch.setattr(scripted_engine, "logprob", lambda token_id, n: endless)
    reply = client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=1
    )
    assert reply.choices[0].logprobs.content[0].logprob == -9999.0


def test_completions_prompts(engine, client, loaded):
    engine.reply = lambda request: Script([engine.text(request).upper()])
    ids = loaded.tokenizer.encode("cd").ids

    def ask(prompt, **more):
        reply = client.completions.create(model="tiny", prompt=prompt, **more)
        assert reply.object == "text_completion"
        return [choice.text for choice in reply.choices]

    assert ask("ab") == ["AB"]
    assert last(engine).max_tokens == 16
    assert ask(["ab", "x"]) == ["AB", "X"]
    assert ask(ids) == ["CD"]
    assert engine.requests[-1].prompt_ids == tuple(ids)
    assert ask([ids, ids[:1]]) == ["CD", "C"]
    assert ask(["ab", "x"], n=2) == ["AB", "AB", "X", "X"]
    assert ask(["ab", ""], echo=True) == ["abAB", "<|IM_START|>"]
    assert ask(ids, echo=True) == ["cdCD"]


def test_completions_stream(engine, client):
    texts, reasons = {}, {}
    for chunk in client.completions.create(
        model="tiny", prompt=["a", "b"], n=2, echo=True, stream=True
    ):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        reasons[choice.index] = choice.finish_reason
    assert texts == {i: ("a" if i < 2 else "b") + "Hello, world" for i in range(4)}
    assert set(reasons.values()) == {"stop"}


def test_completions_logprobs(engine, client, loaded):
    engine.reply = lambda request: Script(["é", "b"])
    kinds = {"model": "tiny", "prompt": "xy", "logprobs": 1}
    got = client.completions.create(**kinds).choices[0].logprobs
    assert got.tokens == ["\ufffd", "\ufffd", "b"]
    assert got.text_offset == [0, 0, 1]
    ids = loaded.tokenizer.encode("éb").ids
    assert got.token_logprobs == [logprob(i, 1).logprob for i in ids]
    assert got.top_logprobs[2] == {"b": logprob(ids[2], 1).logprob}
    merged = {"tokens": [], "text_offset": [], "token_logprobs": []}
    for chunk in client.completions.create(**kinds, stream=True):
        if chunk.choices[0].logprobs:
            for name in merged:
                merged[name] += getattr(chunk.choices[0].logprobs, name)
    assert merged == {name: getattr(got, name) for name in merged}


def test_echo_scores_the_prompt(engine, client, loaded):
    """max_tokens=0 with echo and logprobs is how evaluation harnesses score continuations."""
    engine.reply = lambda request: Script([])
    reply = client.completions.create(
        model="tiny", prompt="abc", echo=True, logprobs=1, max_tokens=0
    )
    choice = reply.choices[0]
    assert choice.text == "abc" and last(engine).prompt_logprobs_from == 1
    assert choice.logprobs.tokens == ["a", "b", "c"]
    ids = loaded.tokenizer.encode("abc").ids
    assert choice.logprobs.token_logprobs == [None, *(logprob(i, 1).logprob for i in ids[1:])]
    assert choice.logprobs.top_logprobs[0] is None and choice.logprobs.text_offset == [0, 1, 2]


def test_echo_of_a_prompt_whose_bos_the_tokenizer_adds():
    from tokenizers import processors

    own = byte_tokenizer()
    mark = "<|im_start|>"
    own.tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{mark} $A", pair=f"{mark} $A $B", special_tokens=[(mark, 256)]
    )
    with RunningServer(ScriptedEngine(own), own) as server, server.client() as client:
        reply = client.completions.create(model="tiny", prompt="aéb", echo=True, logprobs=0)
    assert reply.choices[0].text == "aébHello, world"
    logprobs = reply.choices[0].logprobs
    assert logprobs.tokens[:6] == [mark, "a", "\ufffd", "\ufffd", "b", "H"]
    assert logprobs.text_offset[:6] == [0, 0, 1, 1, 2, 3]


def test_max_tokens_ends_with_length(engine, client):
    engine.reply = lambda request: Script(["abc"] * 5)
    reply = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("abcab", "length")


def test_response_format(engine, client):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for form, expected in (
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (wrapped, schema),
    ):
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=form)
        grammar = last(engine).grammar
        assert (None if grammar is None else json.loads(grammar.source)) == expected
        assert grammar is None or grammar.kind == "json_schema"
    for given in (schema, json.dumps(schema)):
        client.completions.create(model="tiny", prompt="x", extra_body={"guided_json": given})
        assert json.loads(last(engine).grammar.source) == schema


def test_models_and_adapters(engine, client):
    assert [model.id for model in client.models.list()] == ["tiny", "poet", "pirate"]
    assert client.models.retrieve("poet").id == "poet"
    with pytest.raises(openai.NotFoundError, match="served are: tiny, poet, pirate"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    reply = client.chat.completions.create(model="poet", messages=HELLO)
    assert reply.model == "poet" and engine.requests[-1].adapters == (("poet", 1.0),)
    client.chat.completions.create(
        model="tiny", messages=HELLO, extra_body={"adapters": {"pirate": 0.5, "poet": -1}}
    )
    assert engine.requests[-1].adapters == (("pirate", 0.5), ("poet", -1.0))
    client.chat.completions.create(model="tiny", messages=HELLO)
    assert engine.requests[-1].adapters == ()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        CALL,
        CALL.removesuffix("\n</tool_call>"),
        '{"name": "get_weather", "arguments": {"city": "Berlin"}}',
        '[get_weather(city="Berlin")]',
    ],
)
def test_tool_calls_come_back(engine, client, text, stream):
    engine.reply = lambda request: Script(list(text))
    kinds = {"model": "tiny", "messages": HELLO, "tools": [WEATHER, TIME]}
    if stream:
        with client.chat.completions.stream(**kinds) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**kinds).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content in (None, "")
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Berlin"}
    assert call.id.startswith("call_")


@pytest.mark.parametrize("stream", [False, True])
def test_text_around_tool_calls(engine, client, stream):
    engine.reply = lambda request: Script(list(f"I look.\n{CALL}\n{CALL}"))
    kinds = {"model": "tiny", "messages": HELLO, "tools": [WEATHER]}
    if stream:
        with client.chat.completions.stream(**kinds) as events:
            message = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**kinds).choices[0].message
    assert message.content == "I look."
    assert len(message.tool_calls) == 2
    assert message.tool_calls[0].id != message.tool_calls[1].id
    single = client.chat.completions.create(**kinds, parallel_tool_calls=False)
    assert len(single.choices[0].message.tool_calls) == 1
    none = client.chat.completions.create(**kinds, tool_choice="none").choices[0]
    assert CALL in none.message.content and none.finish_reason == "stop"


def test_plain_answer_beside_tools(engine, client):
    reply = client.chat.completions.create(model="tiny", messages=HELLO, tools=[WEATHER])
    assert reply.choices[0].message.content == "Hello, world"
    assert reply.choices[0].finish_reason == "stop"
    chunks = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[WEATHER], stream=True
    )
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert texts.count("Hello") == 1 and "".join(filter(None, texts)) == "Hello, world"


def test_call_cut_off_by_length(engine, client):
    engine.reply = lambda request: Script(list(CALL))
    reply = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[WEATHER], max_tokens=20
    )
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content == CALL[:20]


def test_forced_calls_are_constrained(engine, client):
    kinds = {"model": "tiny", "messages": HELLO, "tools": [WEATHER, TIME]}
    one = {
        "type": "object",
        "properties": {
            "name": {"const": "get_weather"},
            "arguments": WEATHER["function"]["parameters"],
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    named = {"type": "function", "function": {"name": "get_weather"}}
    client.chat.completions.create(**kinds, tool_choice=named)
    assert json.loads(last(engine).grammar.source) == one
    client.chat.completions.create(**kinds, tool_choice="required")
    schema = json.loads(last(engine).grammar.source)
    assert schema["anyOf"][0] == one and len(schema["anyOf"]) == 2
    client.chat.completions.create(**kinds, tool_choice="required", parallel_tool_calls=True)
    assert json.loads(last(engine).grammar.source)["type"] == "array"
    client.chat.completions.create(**kinds, tool_choice="auto")
    assert last(engine).grammar is None
    client.chat.completions.create(**kinds, response_format={"type": "json_object"})
    schema = json.loads(last(engine).grammar.source)
    assert schema["anyOf"][:2] == [{"type": "object"}, one]


def test_a_whole_conversation_with_tools(engine, client):
    engine.reply = lambda request: Script([CALL])
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    kinds = {"model": "tiny", "tools": [WEATHER]}
    message = client.chat.completions.create(messages=messages, **kinds).choices[0].message
    messages += [
        message,  # as the client library gives it
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"},
    ]
    engine.reply = lambda request: Script(["It is sunny."])
    reply = client.chat.completions.create(messages=messages, **kinds)
    assert reply.choices[0].message.content == "It is sunny."
    first, second = (engine.text(request) for request in engine.requests)
    assert first.startswith("<|im_start|>system\n") and '"name": "get_weather"' in first
    assert first.index("<tools>") < first.index("Be brief.") < first.index("<|im_end|>")
    assert second.startswith(first)  # so that the cache of prefixes serves the second turn
    assert second[len(first) :] == (
        f"{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_content_parts_and_roles(engine, client):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "ann"},
        ],
    )
    assert engine.text(engine.requests[0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_concurrent_clients(engine, server):
    """Every client gets its own text, and they run at the same time."""
    engine.reply = lambda request: Script([engine.text(request)[-2:]] * 5, delay=0.02)

    async def one(client, index):
        name = f"{index:02d}"
        if index % 2:
            reply = await client.completions.create(model="tiny", prompt=name)
            return reply.choices[0].text
        stream = await client.completions.create(model="tiny", prompt=name, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def main():
        async with server.async_client() as client:
            return await asyncio.gather(*(one(client, index) for index in range(32)))

    assert asyncio.run(main()) == [f"{index:02d}" * 5 for index in range(32)]
    assert engine.most_running > 16


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(engine, server, stream):
    engine.reply = lambda request: Script(["x"] * 10_000, delay=0.01)

    async def main():
        async with server.async_client() as client:
            asked = client.chat.completions.create(model="tiny", messages=HELLO, n=2, stream=stream)
            if stream:
                chunks = await asked
                await anext(aiter(chunks))
                await chunks.close()
            else:
                task = asyncio.create_task(asked)
                await asyncio.to_thread(wait_for, lambda: len(engine.requests) == 2)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    wait_for(lambda: len(engine.cancelled) == 2)
    assert sorted(engine.cancelled) == sorted(r.id for r in engine.requests)
    assert engine.finished == [] and engine.running == 0
    with server.client() as client:  # and the server serves on
        engine.reply = lambda request: Script()
        assert client.completions.create(model="tiny", prompt="x").choices[0].text


def test_sync_clients_in_threads(engine, server):
    texts = []

    def one():
        with server.client() as client:
            stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            texts.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["Hello, world"] * 8


def test_templates_that_know_tools():
    """A template that reads tools and tool_calls gets them as they are, arguments as objects."""
    template = (
        "{% for t in tools or [] %}T:{{ t.function.name }};{% endfor %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.city }}]"
        "{% endfor %};{% endfor %}"
    )
    loaded = byte_tokenizer(template)
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Bonn"}'},
    }
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "wet"},
    ]
    engine = ScriptedEngine(loaded)
    with RunningServer(engine, loaded) as server, server.client() as client:
        client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
        client.chat.completions.create(
            model="tiny", messages=messages, tools=[WEATHER], tool_choice="none"
        )
    with_tools, without = (engine.text(request) for request in engine.requests)
    rest = "user:Hi;assistant:[get_weather Bonn];tool:wet;"
    assert (with_tools, without) == ("T:get_weather;" + rest, rest)
