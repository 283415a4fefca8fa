"""A run against an endpoint on a real socket, which dies in the middle."""

import http.server
import json
import threading

import pytest

from agents_jax.llm import RetryPolicy
from agents_jax.tools.agent import LoopSettings, RunError, read_transcripts
from agents_jax.tools.agent.config import AgentConfig
from agents_jax.tools.agent.experiment import run


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers in the OpenAI protocol: first a call of the calculator, then its result.

    left: answers until it refuses every key.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.left, self.bodies = 10**9, []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.left -= 1
        if self.server.left < 0:
            self.reply(401, {"error": {"message": "no such key"}})
            return
        last = body["messages"][-1]
        if last["role"] == "tool":
            message = {"role": "assistant", "content": f"It is {last['content']}."}
        else:
            function = {"name": "calculator", "arguments": '{"expression": "6 * 7"}'}
            call = {"id": "abc123xyz", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        self.reply(200, {"model": "m", "choices": [choice], "usage": usage})

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_run_over_http_survives_its_endpoint(tmp_path, endpoint, capsys):
    lines = [
        {"id": f"t{i}", "query": f"{i}: what is 6 * 7?", "needs_tool": True,
         "expected": {"answer": 42, "calls": [{"name": "calculator"}]}}
        for i in range(3)
    ]  # fmt: skip
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = AgentConfig(
        model=f"http://127.0.0.1:{endpoint.server_port}/v1#m",
        endpoint={"retry": RetryPolicy(max_attempts=1)},
        tasks=str(tasks), loop=LoopSettings(max_tokens=32), concurrency=1,
    )  # fmt: skip
    workdir = tmp_path / "run"
    endpoint.left = 3  # the second task's call is made, its answer is refused
    with pytest.raises(RunError, match="no such key"):
        run("train", config, workdir, [])
    kept = read_transcripts(workdir / "transcripts.jsonl")
    assert [t.end for t in kept.values()] == ["answer", "model_failed"]
    assert (kept["t1"].failure, kept["t1"].observations[0].text) == ("auth", "42")
    assert not (workdir / "report.json").exists()

    endpoint.left = 10**9
    endpoint.bodies.clear()
    assert run("train", config, workdir, []) == 0
    assert len(endpoint.bodies) == 3  # what was answered before is not asked again
    report = json.loads((workdir / "report.json").read_text())
    assert report["rates"]["success"]["hits"] == 3
    first = endpoint.bodies[0]
    assert first["max_tokens"] == 32 and first["temperature"] == 0
    assert {tool["function"]["name"] for tool in first["tools"]} >= {"calculator"}
    assert (workdir / "ledger.jsonl").exists() and (workdir / "answers.jsonl").exists()
