"""Endpoints that answer, and endpoints that misbehave, on a real socket."""

import asyncio
import json
import logging
import pickle
import random
import socket
import traceback

import pytest

from agents_jax.llm import (
    BatchError,
    EndpointConfig,
    EndpointModel,
    GenerateRequest,
    InvalidRequest,
    Ledger,
    MissingCapability,
    Prices,
    RecordedModel,
    RetryPolicy,
    Transcript,
    user,
)

ask = GenerateRequest.ask
KEY = "sk-very-secret-0123456789"


class FakeClock:
    def __init__(self):
        self.time, self.slept = 0.0, []

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)


@pytest.fixture
def open_endpoint(server):
    opened = []

    def make(*, ledger=None, transcript=None, clock=None, attempts=3, **settings):
        settings = {"base_url": server.url, "model": "m", "timeout": 5.0} | settings
        settings.setdefault("retry", RetryPolicy(max_attempts=attempts))
        model = EndpointModel(
            EndpointConfig(**settings),
            ledger=ledger,
            transcript=transcript,
            clock=clock or FakeClock(),
            rng=random.Random(0),
        )
        opened.append(model)
        return model

    yield make
    for model in opened:
        model.close()


def failure(model, request=None):
    """The failure of one request, and the message of the error it raises."""
    (answer,) = model.generate([request or ask("x")], on_error="return")
    return answer.error


def test_a_good_answer(server, http, open_endpoint):
    server.respond = [http.chat("Paris", usage=(11, 2))]
    (answer,) = open_endpoint().generate(
        [ask("capital?", system_text="be short", max_tokens=9, stop="\n", top_p=0.5, seed=4)]
    )
    assert (answer.text, answer.finish_reason, answer.model) == ("Paris", "stop", "served")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 2)
    assert [a.outcome for a in answer.attempts] == ["ok"] and answer.latency > 0
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["body"] == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": "capital?"},
        ],
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["\n"],
        "seed": 4,
    }
    assert "authorization" not in request["headers"]


def test_fields_beyond_the_protocol(server, http, open_endpoint):
    completion = http.reply(
        json.dumps(
            {
                "choices": [
                    {
                        "text": " b",
                        "finish_reason": "length",
                        "logprobs": {
                            "tokens": [" b"],
                            "token_logprobs": [-0.5],
                            "top_logprobs": [{" c": -1.0, " b": -0.5}],
                        },
                    }
                ]
            }
        )
    )
    server.respond = [completion]
    request = GenerateRequest(
        prompt="a", top_k=3, min_p=0.1, repetition_penalty=1.2, regex="b", logprobs=2,
        extra={"ignore_eos": True},
    )  # fmt: skip
    (answer,) = open_endpoint(server="vllm").generate([request])
    token = answer.logprobs[0]
    assert (token.text, token.logprob, token.top) == (" b", -0.5, ((" b", -0.5), (" c", -1.0)))
    body = server.requests[0]["body"]
    assert server.requests[0]["path"] == "/v1/completions"
    assert body["structured_outputs"] == {"regex": "b"} and body["ignore_eos"] is True
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (3, 0.1, 1.2)
    open_endpoint(server="pangu").generate([GenerateRequest(prompt="a", regex="b")])
    assert server.requests[1]["body"]["guided_regex"] == "b"
    with pytest.raises(MissingCapability, match="min_p, regex, repetition_penalty, top_k"):
        open_endpoint().generate([request])


def test_tools_content_null_and_schema(server, http, open_endpoint):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    as_object = {"function": {"name": "g", "arguments": {"b": 2}}}
    server.respond = [http.chat(None, tool_calls=[call, as_object]), http.chat(None)]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    model = open_endpoint()
    request = ask("x", tools=[tool], tool_choice="auto", response_schema={"type": "object"})
    (answer,) = model.generate([request])
    assert answer.text == ""
    assert [(c.name, c.parse(), c.id) for c in answer.tool_calls] == [
        ("f", {"a": 1}, "c1"),
        ("g", {"b": 2}, ""),
    ]
    body = server.requests[0]["body"]
    assert body["tools"] == [tool] and body["tool_choice"] == "auto"
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    (empty,) = model.generate([ask("y")])
    assert empty.text == "" and empty.tool_calls == ()


def choices(*texts):
    return json.dumps(
        {
            "choices": [
                {"index": i, "message": {"content": text}, "finish_reason": "stop"}
                for i, text in enumerate(texts)
            ],
            "usage": {"prompt_tokens": 5, "completion_tokens": len(texts)},
        }
    )


def test_samples_in_one_call_or_one_by_one(server, http, open_endpoint):
    def respond(request):
        n = request["body"].get("n", 1)
        return http.reply(choices(*(f"{request['body'].get('seed')}-{i}" for i in range(n))))

    server.respond = respond
    (together,) = open_endpoint().generate([ask("x", n=3, temperature=1.0)])
    assert together.texts == ("None-0", "None-1", "None-2")
    assert len(server.requests) == 1 and together.usage.completion_tokens == 3
    (seeded,) = open_endpoint().generate([ask("x", n=3, temperature=1.0, seed=5)])
    assert len(server.requests) == 4
    assert seeded.texts[0] == "5-0" and len(set(seeded.texts)) == 3


def test_a_server_that_ignores_n_is_asked_again(server, http, open_endpoint):
    server.respond = lambda request: http.reply(choices("a"))
    model = open_endpoint()
    (answer,) = model.generate([ask("x", n=3, temperature=1.0)])
    assert answer.texts == ("a", "a", "a") and [c.sample for c in answer.choices] == [0, 1, 2]
    assert [r["body"].get("n") for r in server.requests] == [3, None, None]
    model.generate([ask("y", n=2, temperature=1.0)])
    assert [r["body"].get("n") for r in server.requests[3:]] == [None, None]


GOOD = b"good"  # stands for a good answer in the lists below


def passing(http):
    """Failures that are tried again: name, actions, kind."""
    good = http.chat()
    page = "<!DOCTYPE html><html><title>Bad gateway</title></html>"
    return {
        "status 429": (http.reply("{}", 429), "rate_limit"),
        "status 500": (http.reply('{"error": {"message": "boom"}}', 500), "server"),
        "status 502 with a page": (http.reply(page, 502, "text/html"), "server"),
        "status 503 empty": (http.reply("", 503), "server"),
        "closes without an answer": (None, "connection"),
        "closes in the middle": ([good[: len(good) // 2 + 40], None], "truncated"),
        "shorter than it says": ([http.reply(b'{"cho', length=500), None], "truncated"),
        "JSON cut off": (http.reply('{"choices": [{"message": {"con'), "truncated"),
        "NaN": (http.reply('{"choices": NaN}'), "truncated"),
        "empty choices": (http.reply('{"choices": []}'), "truncated"),
        "an error with 200": (http.reply('{"error": {"message": "busy", "code": 503}}'), "server"),
        "no HTTP at all": ([b"SSH-2.0-OpenSSH\r\n\r\n", None], "connection"),
        "empty body": (http.reply(""), "truncated"),
        "bad gzip": (http.reply(b"xx", headers=[("Content-Encoding", "gzip")]), "truncated"),
    }


NAMES = [
    "status 429", "status 500", "status 502 with a page", "status 503 empty",
    "closes without an answer", "closes in the middle", "shorter than it says", "JSON cut off",
    "NaN", "empty choices", "an error with 200", "no HTTP at all", "empty body", "bad gzip",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_may_pass_is_tried_again(server, http, open_endpoint, name):
    assert NAMES == list(passing(http))
    action, kind = passing(http)[name]
    server.respond = [action, action, http.chat("at last")]
    clock = FakeClock()
    (answer,) = open_endpoint(clock=clock).generate([ask("x")])
    assert answer.text == "at last"
    assert [a.outcome for a in answer.attempts] == [kind, kind, "ok"]
    assert len(clock.slept) == 2
    server.requests.clear()
    server.respond = [action]
    error = failure(open_endpoint())
    assert (error.kind, error.attempts) == (kind, 3)
    assert len(server.requests) == 3 and "Tried 3 time(s)" in error.message


def lasting(http):
    page = "<!DOCTYPE html>\n<html><head><title>Welcome &amp; co</title></head></html>"
    return {
        "401": (http.reply('{"error": {"message": "who"}}', 401), "auth", "api_key_env"),
        "403": (http.reply("no", 403), "auth", "HTTP 403: no"),
        "404": (http.reply('{"detail": "model?"}', 404), "not_found", "base_url.*model"),
        "400": (http.reply('{"error": "too long"}', 400), "bad_request", "too long"),
        "redirect": (
            http.reply("", 302, headers=[("Location", "http://127.0.0.1:1/")]),
            "malformed",
            "Redirects are not followed",
        ),
        "a page": (http.reply(page, kind="text/html"), "malformed", "HTML page titled 'Welcome"),
        "a page as JSON": (http.reply(page), "malformed", "/v1"),
        "a list": (http.reply("[1]"), "malformed", "list"),
        "no choices": (http.reply('{"id": 1}'), "malformed", "no choices.*'id'"),
        "odd choices": (http.reply('{"choices": [{"message": {"content": 7}}]}'), "malformed", ""),
        "odd choice": (http.reply('{"choices": [3]}'), "malformed", "protocol"),
        "no quota": (
            http.reply('{"error": {"code": "insufficient_quota", "message": "pay"}}', 429),
            "budget",
            "quota",
        ),
    }


LASTING = [
    "401", "403", "404", "400", "redirect", "a page", "a page as JSON", "a list", "no choices",
    "odd choices", "odd choice", "no quota",
]  # fmt: skip


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_not_tried_again(server, http, open_endpoint, name):
    assert LASTING == list(lasting(http))
    action, kind, words = lasting(http)[name]
    server.respond = [action]
    clock = FakeClock()
    with pytest.raises(BatchError, match=f"(?s){words}") as caught:
        open_endpoint(clock=clock).generate([ask("x")])
    assert caught.value.results[0].error.kind == kind
    assert len(server.requests) == 1 and clock.slept == []


def test_one_refused_key_stops_a_long_batch(server, http, open_endpoint):
    server.respond = [http.reply("{}", 401)]
    answers = open_endpoint(concurrency=2).generate(
        [ask(str(i)) for i in range(200)], on_error="return"
    )
    assert len(server.requests) <= 4
    assert {a.error.kind for a in answers} == {"auth", "not_asked"}


@pytest.mark.parametrize("silent", ["before a byte", "after the head", "drop by drop"])
def test_an_endpoint_that_hangs(server, http, open_endpoint, silent):
    good = http.chat()
    hang = {
        "before a byte": [60.0],
        "after the head": [http.chat()[:30], 60.0],
        # Each byte comes soon, so that a limit between bytes would let it pass, late.
        "drop by drop": [step for i in range(len(good)) for step in (good[i : i + 1], 0.02)],
    }[silent]
    server.respond = [hang]
    error = failure(open_endpoint(timeout=0.3, attempts=2))
    assert error.kind == "timeout" and error.attempts == 2 and "0.3 s" in error.message


def test_nobody_listens(open_endpoint):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = failure(open_endpoint(base_url=f"http://127.0.0.1:{port}/v1"))
    assert error.kind == "connection" and error.attempts == 3 and str(port) in error.message


def test_an_endless_answer_is_cut(server, http, open_endpoint):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.respond = [[head, *[b"400\r\n" + b" " * 1024 + b"\r\n"] * 2000]]
    error = failure(open_endpoint(max_body=10_000))
    assert error.kind == "malformed" and "max_body=10000" in error.message


def test_retry_after_and_deadline(server, http, open_endpoint):
    busy = http.reply("{}", 429, headers=[("Retry-After", "42")])
    server.respond = [busy, http.chat()]
    clock = FakeClock()
    (answer,) = open_endpoint(clock=clock).generate([ask("x")])
    assert answer.text == "hello" and clock.slept == [42.0]
    server.requests.clear()
    server.respond = [busy]
    error = failure(open_endpoint(retry=RetryPolicy(deadline=60.0)))
    assert error.kind == "deadline" and error.attempts == 2


def test_answers_beside_a_failure_are_kept(server, http, open_endpoint, tmp_path):
    def respond(request):
        text = request["body"]["messages"][0]["content"]
        return http.reply("{}", 400) if text == "3" else http.chat(text)

    server.respond = respond
    path = tmp_path / "run.jsonl"
    model = open_endpoint(concurrency=4)
    recorded = RecordedModel(path, model)
    with pytest.raises(BatchError):
        recorded.generate([ask(str(i)) for i in range(8)])
    done = len(recorded)
    assert done >= 3
    server.respond = lambda request: http.chat("later")
    server.requests.clear()
    answers = recorded.generate([ask(str(i)) for i in range(8)])
    assert len(server.requests) == 8 - done
    assert [answers[i].text for i in range(3)] == ["0", "1", "2"]
    recorded.close()


def test_order_and_concurrency(server, http, open_endpoint):
    rng = random.Random(1)
    server.respond = lambda r: [rng.random() * 0.02, http.chat(r["body"]["messages"][0]["content"])]
    answers = open_endpoint(concurrency=6).generate([ask(str(i)) for i in range(40)])
    assert [a.text for a in answers] == [str(i) for i in range(40)]


SSE = "text/event-stream"


def events(*values, end="data: [DONE]\n\n"):
    return "".join(f"data: {json.dumps(value)}\n\n" for value in values) + end


def delta(finish=None, **content):
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish}]}


def test_streams_are_put_together(server, http, open_endpoint):
    tools = [
        delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
        delta("tool_calls"),
    ]
    usage = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}
    server.respond = [
        http.reply(
            ": ping\n\n" + events(delta(role="assistant"), delta(content="Hel"),
                                  delta(content="lo ü"), delta("stop"), usage), kind=SSE),
        http.reply(events(*tools).replace("\n", "\r\n"), kind=SSE),
    ]  # fmt: skip
    model = open_endpoint(stream=True)
    first, second = (model.generate([ask(text)])[0] for text in "xy")
    assert (first.text, first.finish_reason, first.usage.prompt_tokens) == ("Hello ü", "stop", 4)
    assert second.tool_calls[0].parse() == {"x": 1} and second.finish_reason == "tool_calls"
    assert server.requests[0]["body"]["stream_options"] == {"include_usage": True}


def test_a_stream_that_breaks_off_is_tried_again(server, http, open_endpoint):
    broken = http.reply(events(delta(content="Hel"), end=""), kind=SSE)
    torn = http.reply(events(delta(content="Hel"), end='data: {"choi'), kind=SSE)
    whole = http.reply(events(delta("stop", content="Hello")), kind=SSE)
    failed = http.reply(events({"error": {"message": "out of memory"}}), kind=SSE)
    server.respond = [broken, torn, failed, whole]
    (answer,) = open_endpoint(stream=True, attempts=4).generate([ask("x")])
    assert answer.text == "Hello"
    assert [a.outcome for a in answer.attempts] == ["truncated", "truncated", "server", "ok"]


def test_the_key_is_sent_and_never_shown(
    server, http, open_endpoint, monkeypatch, tmp_path, caplog, capfd
):
    monkeypatch.setenv("TEST_KEY", KEY + "\n")
    caplog.set_level(logging.DEBUG)
    echoed = json.dumps({"error": {"message": f"wrong key {KEY} in Bearer {KEY}"}})
    server.respond = [
        http.reply(echoed, 500),
        http.reply(f"<html><title>{KEY}</title></html>", 502, "text/html"),
        http.chat("fine"),
        http.reply(echoed, 401),
    ]
    ledger, transcript = Ledger(tmp_path / "ledger.json"), Transcript(tmp_path / "calls.jsonl")
    model = open_endpoint(api_key_env="TEST_KEY", ledger=ledger, transcript=transcript)
    with RecordedModel(tmp_path / "run.jsonl", model) as recorded:
        (answer,) = recorded.generate([ask("x")])
        with pytest.raises(BatchError) as caught:
            recorded.generate([ask("y")])
    transcript.close()
    assert {r["headers"]["authorization"] for r in server.requests} == {f"Bearer {KEY}"}
    texts = [path.read_text() for path in tmp_path.iterdir()]
    assert len(texts) == 3 and all(texts)
    error = caught.value
    texts += [repr(v) for v in (model, model.config, recorded, ledger, answer, error)]
    texts += [str(error), str(error.results), "".join(traceback.format_exception(error))]
    texts += [caplog.text, "".join(capfd.readouterr()), str(vars(model)), str(model.identity)]
    assert "[redacted]" in str(error)
    assert not [text for text in texts if KEY in text]
    assert KEY not in repr(pickle.dumps(model.config))


@pytest.mark.parametrize("value", ["", "  ", "sk-with a space", "sk-ü", "sk-a\nb"])
def test_a_key_that_cannot_be_sent_is_not_quoted(server, open_endpoint, monkeypatch, value):
    monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(InvalidRequest, match="TEST_KEY") as caught:
        open_endpoint(api_key_env="TEST_KEY")
    assert not value.strip() or value not in str(caught.value)
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(InvalidRequest, match="'TEST_KEY'.*is not set"):
        open_endpoint(api_key_env="TEST_KEY")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"base_url": "host/v1"}, "http://host:port/v1"),
        ({"base_url": "ftp://host/v1"}, "http://host:port/v1"),
        ({"base_url": "http://u:pw@host/v1"}, "environment"),
        ({"base_url": "http://host/v1?key=pw"}, "environment"),
        ({"model": ""}, "model is empty"),
        ({"server": "tgi"}, "vllm"),
        ({"scoring": "guess"}, "echo"),
        ({"timeout": 0}, "timeout=0"),
        ({"headers": {"AUTHORIZATION": "Bearer pw"}}, "environment"),
    ],
)
def test_settings_that_are_refused(settings, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        EndpointConfig(**({"base_url": "http://host/v1", "model": "m"} | settings))
    assert "pw" not in str(caught.value)


def test_costs_are_booked(server, http, open_endpoint, tmp_path):
    server.respond = [
        http.chat(usage=(1000, 500)),
        http.reply("{}", 429),  # costs nothing
        http.chat(usage=(2000, 100)),
        http.chat(usage=None),  # says nothing: the upper bound is booked
    ]
    path = tmp_path / "ledger.json"
    ledger = Ledger(path, prices=Prices(input=1.0, output=10.0))
    model = open_endpoint(ledger=ledger)
    model.generate([ask("x", tag="first")])
    model.generate([ask("y")])
    assert ledger.cost == pytest.approx((3000 + 6000) / 1e6) and ledger.calls == 2
    model.generate([ask("z", max_tokens=50)])
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [e["tag"] for e in entries] == ["first", "", ""]
    assert entries[2]["usage"]["estimated"] and entries[2]["usage"]["completion_tokens"] == 50
    assert sum(e["cost"] for e in entries) == pytest.approx(ledger.cost)


def test_the_budget_stops_before_it_is_overrun(server, http, open_endpoint):
    server.respond = lambda request: http.chat(usage=(10, 100))
    ledger = Ledger(prices=Prices(input=0.0, output=1e4), budget=3.5)  # 1.0 per call of 100 tokens
    model = open_endpoint(ledger=ledger, concurrency=4)
    answers = model.generate([ask(str(i), max_tokens=100) for i in range(9)], on_error="return")
    assert len(server.requests) == 3 and ledger.cost == pytest.approx(3.0)
    assert sum(a.error is None for a in answers) == 3
    stopped = next(a.error for a in answers if a.error and a.error.kind == "budget")
    assert "budget=3.5" in stopped.message and "3 is spent" in stopped.message
    (answer,) = model.generate([ask("x", max_tokens=None)], on_error="return")
    assert "max_tokens" in answer.error.message


def test_a_timeout_may_have_been_charged(server, open_endpoint):
    server.respond = [[60.0]]
    ledger = Ledger(prices=Prices(input=0.0, output=1e4), budget=2.5)
    error = failure(open_endpoint(ledger=ledger, timeout=0.1, attempts=5), ask("x", max_tokens=100))
    assert error.kind == "budget" and len(server.requests) == 2
    assert ledger.cost == pytest.approx(2.0) and ledger.usage.estimated


def test_one_model_from_several_loops(server, http, open_endpoint):
    server.respond = lambda request: http.chat()
    model = open_endpoint()
    for _ in range(2):
        assert asyncio.run(model.agenerate([ask("x")]))[0].text == "hello"
    assert model.generate([GenerateRequest(messages=[user("x")])])[0].text == "hello"
