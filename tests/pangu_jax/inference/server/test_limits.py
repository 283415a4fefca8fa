"""Keys, queues, slow clients: nobody takes more than a share, and secrets stay secret."""

import asyncio
import itertools
import json
import logging
import socket
import time

import httpx
import openai
import pytest
from scripted_engine import RunningServer, Script, ScriptedEngine, wait_for

from pangu_jax.inference.server import Limits, ServeError, api_key_from_environment

HELLO = [{"role": "user", "content": "Hi"}]
KEY = "sk-correct-horse"


def test_api_key(loaded, caplog):
    caplog.set_level(logging.DEBUG)
    with RunningServer(ScriptedEngine(loaded), loaded, api_key=KEY) as server:
        with server.client(api_key=KEY) as client:
            assert client.chat.completions.create(model="tiny", messages=HELLO).choices
        for wrong in ("sk-wrong", KEY + "x", KEY[:-1]):
            with server.client(api_key=wrong) as client:
                with pytest.raises(openai.AuthenticationError) as caught:
                    client.models.list()
                assert caught.value.code == "invalid_api_key" and wrong not in str(caught.value)
        for path in ("models", "nothing", "chat/completions"):
            reply = httpx.get(f"{server.url}/{path}?key={KEY}", trust_env=False)
            assert reply.status_code == 401 and "missing" in reply.json()["error"]["message"]
        odd = {"authorization": "Bearer käse".encode("latin-1")}
        assert httpx.get(f"{server.url}/models", headers=odd, trust_env=False).status_code == 401
        basic = {"authorization": f"Basic {KEY}"}
        assert httpx.get(f"{server.url}/models", headers=basic, trust_env=False).status_code == 401
        assert httpx.get(f"{server.root}/health", trust_env=False).status_code == 200
    lines = [record.getMessage() for record in caplog.records if record.name == "pangu_jax.serve"]
    assert any("POST /v1/chat/completions 200" in line for line in lines)
    assert not any(KEY in line or "sk-wrong" in line or "Hi" in line for line in lines)


def test_key_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    assert api_key_from_environment("SOME_KEY") == KEY
    for value in ("", "  "):
        monkeypatch.setenv("SOME_KEY", value)
        with pytest.raises(ServeError, match="SOME_KEY is not set or empty"):
            api_key_from_environment("SOME_KEY")


def test_settings_that_do_not_fit(loaded):
    engine = ScriptedEngine(loaded)
    with pytest.raises(ServeError, match="running=0"):
        Limits(running=0)
    with pytest.raises(ServeError, match="write_seconds=0"):
        Limits(write_seconds=0)
    for settings, message in (
        ({"adapters": ("tiny",)}, "two models are named 'tiny'"),
        ({"api_key": " "}, "api_key is empty"),
        ({"drain_seconds": -1}, "drain_seconds=-1"),
        ({"port": 99999}, "port 99999"),
        ({"host": "256.1.1.1"}, "256.1.1.1"),
    ):
        with pytest.raises(ServeError, match=message):
            with RunningServer(engine, loaded, **settings):
                pass
    with RunningServer(engine, loaded) as server:
        with pytest.raises(ServeError, match="Choose another host or port"):
            with RunningServer(engine, loaded, port=server.address[1]):
                pass


def test_queue(loaded):
    """2 run, 3 wait in turn, the others are told to come back; nobody is lost."""
    engine = ScriptedEngine(loaded, lambda request: Script(["x"] * 4, delay=0.04))
    limits = Limits(running=2, waiting=3, retry_after=7)

    async def main(server):
        async with server.async_client() as client:
            asked = [client.completions.create(model="tiny", prompt="x") for _ in range(9)]
            return await asyncio.gather(*asked, return_exceptions=True)

    with RunningServer(engine, loaded, limits=limits) as server:
        replies = asyncio.run(main(server))
        refused = [reply for reply in replies if isinstance(reply, openai.RateLimitError)]
        served = [reply for reply in replies if not isinstance(reply, Exception)]
        assert len(served) == 5 and len(refused) == 4
        assert engine.most_running == 2 and len(engine.finished) == 5
        assert refused[0].response.headers["retry-after"] == "7"
        assert refused[0].code == "rate_limit_exceeded"
        with server.client() as client:
            with pytest.raises(openai.BadRequestError, match="takes 5 at most"):
                client.completions.create(model="tiny", prompt="x", n=6)
            # All five places are free again, also after errors and cancelled requests.
            assert len(client.completions.create(model="tiny", prompt="x", n=5).choices) == 5
        # The client's own retries get through.
        with server.client(max_retries=0) as client:
            stream = client.completions.create(model="tiny", prompt="x", n=5, stream=True)
            next(iter(stream))
            stream.close()
            wait_for(lambda: engine.running == 0)
            wait_for(lambda: _takes(client))


def _takes(client) -> bool:
    try:
        return len(client.completions.create(model="tiny", prompt="x", n=5).choices) == 5
    except openai.RateLimitError:
        return False


def _post(server, body, *, receive_buffer=None) -> socket.socket:
    """A request over a bare socket, whose reply nobody reads yet."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(server.address)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def _endless(request) -> Script:
    return Script(itertools.repeat("x" * 8192)) if request.sampling.seed == 1 else Script()


def test_a_slow_reader_holds_the_engine_back_and_stalls_nobody(loaded):
    engine = ScriptedEngine(loaded, _endless, context_length=10**9)
    limits = Limits(write_seconds=60, buffered=4)
    body = {"prompt": "x", "seed": 1, "stream": True, "max_tokens": 10**8}
    with RunningServer(engine, loaded, limits=limits) as server:
        connection = _post(server, body, receive_buffer=16384)
        # Production comes to a stop: no news for a while although the request still runs.
        seen = -1
        while engine.produced != seen or not seen:
            seen = engine.produced
            time.sleep(0.3)
        assert engine.running == 1 and engine.cancelled == []
        assert engine.produced * 8192 < 8 * 2**20
        with server.client() as client:
            assert client.completions.create(model="tiny", prompt="x", seed=2).choices[0].text
        # The reader wakes up, and gets more than what was waiting.
        for _ in range(500):
            assert connection.recv(65536)
        wait_for(lambda: engine.produced > seen)
        connection.close()
        wait_for(lambda: engine.running == 0)
        assert len(engine.cancelled) == 1


def test_a_reader_that_stays_away_is_cancelled_and_dropped(loaded):
    engine = ScriptedEngine(loaded, _endless, context_length=10**9)
    limits = Limits(write_seconds=0.5, buffered=4)
    body = {"prompt": "x", "seed": 1, "stream": True, "max_tokens": 10**8}
    with RunningServer(engine, loaded, limits=limits) as server:
        connection = _post(server, body, receive_buffer=16384)
        wait_for(lambda: len(engine.cancelled) == 1)
        assert engine.running == 0
        # What was sent can be read; then the connection ends without the end of the reply.
        received, connection_end = b"", b""
        connection.settimeout(20)
        try:
            while connection_end := connection.recv(65536):
                received += connection_end
        except ConnectionResetError:
            pass
        assert received.startswith(b"HTTP/1.1 200") and b"[DONE]" not in received
        connection.close()


def test_a_body_that_does_not_come(loaded):
    with RunningServer(ScriptedEngine(loaded), loaded, limits=Limits(body_seconds=0.2)) as server:
        connection = socket.create_connection(server.address)
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
        )
        connection.settimeout(20)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
        connection.close()


def test_a_client_that_leaves_in_the_middle_of_its_body(loaded):
    with RunningServer(ScriptedEngine(loaded), loaded) as server:
        connection = socket.create_connection(server.address)
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
        )
        connection.close()
        with server.client() as client:
            assert client.completions.create(model="tiny", prompt="x").choices
    assert len(server.engine.requests) == 1
