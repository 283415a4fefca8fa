"""The server's end: running requests finish in time or are told; the exit code is 0."""

import pathlib
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from scripted_engine import RunningServer, Script, ScriptedEngine, wait_for

HELLO = [{"role": "user", "content": "Hi"}]
ROOT = pathlib.Path(__file__).resolve().parents[4]


def _slow(request) -> Script:
    return Script(["x"] * 40, delay=0.05)  # 2 s


def test_running_requests_finish(loaded):
    engine = ScriptedEngine(loaded, _slow)
    with RunningServer(engine, loaded, drain_seconds=20) as server, server.client() as client:
        stream = iter(client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
        next(stream)
        server.stop()
        wait_for(lambda: engine.closed)
        with pytest.raises(openai.APIConnectionError):
            for _ in range(200):  # until the listening socket is closed
                try:
                    with server.client() as other:
                        other.completions.create(model="tiny", prompt="x")
                except openai.InternalServerError as error:  # still accepted, but refused
                    assert error.status_code == 503 and error.code == "shutting_down"
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "x" * 40
        server.join()
    assert len(engine.finished) == 1 and engine.cancelled == []


@pytest.mark.parametrize("ignores_close", [False, True])
def test_what_does_not_finish_is_ended_in_form(loaded, ignores_close):
    """Also where the engine does not end its requests itself."""
    engine = ScriptedEngine(
        loaded, lambda request: Script(["x"] * 10_000, delay=0.02), ignores_close=ignores_close
    )
    with RunningServer(engine, loaded, drain_seconds=0.3) as server, server.client() as client:
        with httpx.Client(timeout=20, trust_env=False) as http, ThreadPoolExecutor() as pool:
            body = {"prompt": "x", "stream": True, "max_tokens": 4000}
            with http.stream("POST", f"{server.url}/completions", json=body) as raw:
                lines = raw.iter_lines()
                next(lines)
                stream = client.chat.completions.create(
                    model="tiny", messages=HELLO, stream=True, n=2
                )
                texts = [next(iter(stream)).choices[0].delta.content]
                whole = pool.submit(
                    httpx.post,
                    f"{server.url}/completions",
                    json={"prompt": "x", "max_tokens": 4000},
                    timeout=20,
                    trust_env=False,
                )
                wait_for(lambda: len(engine.requests) == 4)
                server.stop()
                with pytest.raises(openai.APIError, match="shutting down"):
                    for chunk in stream:
                        texts.append(chunk.choices[0].delta.content)
                assert len(texts) > 1
                # httpx raises where the chunked encoding has no end.
                rest = [line for line in lines if line]
            assert whole.result().status_code == 503
            assert whole.result().json()["error"]["code"] == "shutting_down"
        assert rest[-1] == "data: [DONE]" and "shutting_down" in rest[-2]
        server.join()
    assert engine.finished == [] and engine.running == 0


def test_a_second_stop_does_not_wait(loaded):
    engine = ScriptedEngine(loaded, lambda request: Script(["x"] * 10_000, delay=0.02))
    with RunningServer(engine, loaded, drain_seconds=600) as server, server.client() as client:
        stream = iter(client.completions.create(model="tiny", prompt="x", stream=True))
        next(stream)
        server.stop()
        wait_for(lambda: engine.closed)
        server.stop()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        server.join()


PROGRAM = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, sys.argv[1])
    from scripted_engine import Script, ScriptedEngine, byte_tokenizer
    from pangu_jax.inference.server import serve

    loaded = byte_tokenizer()
    engine = ScriptedEngine(loaded, lambda request: Script(["x"] * 20, delay=0.05))
    serve(engine, loaded, port=0, drain_seconds=float(sys.argv[2]))
    print("closed", len(engine.finished), len(engine.cancelled), flush=True)
    """
)


@pytest.mark.parametrize(
    ("number", "drain", "finishes"), [(signal.SIGTERM, 20, True), (signal.SIGINT, 0, False)]
)
def test_signals(number, drain, finishes):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(pathlib.Path(__file__).parent), str(drain)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = process.stdout.readline()
        assert ready.startswith("Serving tiny at http://127.0.0.1:")
        url = ready.split()[-1]
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
            stream = iter(client.completions.create(model="tiny", prompt="x", stream=True))
            texts = [next(stream).choices[0].text]
            process.send_signal(number)
            if finishes:
                texts += [chunk.choices[0].text for chunk in stream]
                assert "".join(texts) == "x" * 16
            else:
                with pytest.raises(openai.APIError, match="shutting down"):
                    list(stream)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert out == ("closed 1 0\n" if finishes else "closed 0 0\n")
    assert "POST /v1/completions 200" in err and "Traceback" not in err
