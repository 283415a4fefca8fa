"""Whole runs: the debug variant through the command line, other styles and policies, the chat."""

import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
from rich.console import Console

from agents_jax.llm import CallError, ScriptedModel
from agents_jax.tools.agent import LoopSettings, read_transcripts
from agents_jax.tools.agent.chat import chat
from agents_jax.tools.agent.config import AgentConfig
from agents_jax.tools.agent.experiment import open_agent, run
from agents_jax.tools.agent.loop import Agent

ROOT = pathlib.Path(__file__).resolve().parents[4]


def launch(*arguments):
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_debug_through_the_command_line(tmp_path):
    config = "--config=configs/agents/agent.py:debug"
    done = launch(config, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "success | 40/40" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    # The built-in tasks can be solved with the local tools, each by its one call.
    assert report["rates"]["success, tool needed"]["hits"] == 20
    assert report["rates"]["needless calls"]["hits"] == 0
    assert report["means"]["tool calls per task"]["mean"] == 0.5
    assert "| sum-1 | answer | yes | yes | calculator |" in (tmp_path / "report.md").read_text()
    lines = (tmp_path / "transcripts.jsonl").read_text().splitlines()
    assert len(lines) == 40

    again = launch(config, f"--workdir={tmp_path}")
    assert again.returncode == 0
    assert (tmp_path / "transcripts.jsonl").read_text().splitlines() == lines
    other = launch(config, f"--workdir={tmp_path}", "--config.policy=never")
    assert other.returncode == 2 and "another --workdir" in other.stderr


def run_config(tmp_path, **fields):
    config = AgentConfig(model="oracle", **fields)
    assert run("train", config, tmp_path, ["launch.py"]) == 0
    return json.loads((tmp_path / "report.json").read_text())["rates"]


@pytest.mark.parametrize("style", ["native", "prompted"])
def test_policies_change_what_they_should(tmp_path, style, capsys):
    loop = LoopSettings(style=style)
    never = run_config(tmp_path / "never", policy="never", loop=loop)
    assert never["success, tool needed"]["hits"] == 0 and never["missed calls"]["hits"] == 20
    assert never["success, no tool needed"]["hits"] == 20
    always = run_config(tmp_path / "always", policy="always", loop=loop)
    assert always["success"]["hits"] == 40 and always["needless calls"]["hits"] == 20


def test_own_tasks_without_a_folder_of_ours(tmp_path, capsys):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"id": "a", "query": "hm?"}\n{"id": "b", "query": "What is 4837 * 219?"}\n')
    rates = run_config(tmp_path / "run", tasks=str(tasks), limit=1, concurrency=2)
    assert rates["success"] == {"hits": 0, "trials": 0, "rate": None, "low": 0.0, "high": 1.0}
    assert list(read_transcripts(tmp_path / "run" / "transcripts.jsonl")) == ["a"]


def test_mistakes_are_told_before_a_model_is_loaded(tmp_path):
    for config, said in (
        (AgentConfig(model="nothing", tasks=str(tmp_path / "none.jsonl")), "cannot be read"),
        (AgentConfig(model="nothing"), "of no known form"),
        (AgentConfig(model="oracle", policy="nevr"), "Did you mean 'never'"),
    ):
        with pytest.raises(ValueError, match=said):
            run("train", config, tmp_path, [])
    with pytest.raises(ValueError, match="--mode=eval does not exist"):
        run("eval", AgentConfig(model="oracle"), tmp_path, [])
    with pytest.raises(ValueError, match="limit=-1"):
        run("train", {"limit": -1}, tmp_path, [])
    with pytest.raises(ValueError, match="style"):
        run("train", {"loop": {"style": "loud"}}, tmp_path, [])


def _talk(agent, path, *lines):
    console = Console(file=io.StringIO(), width=200)
    rest = iter(lines)

    def read(prompt):
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    chat(agent, path, read=read, console=console)
    return console.file.getvalue()


def test_chat_with_tools(tmp_path):
    config = AgentConfig(model="oracle")
    with open_agent(config, tmp_path) as (make_agent, _), make_agent() as agent:
        said = _talk(
            agent, tmp_path / "chat.jsonl", "/help", "/tools", "", "What is 4837 * 219?",
            "What is the capital of France?", "/reset", "hm?", "/exit", "never read",
        )  # fmt: skip
    assert "calculator(expression='4837 * 219')" in said and "calculator: Computes" in said
    assert "The result is: 1059303" in said and "Paris" in said
    kept = list(read_transcripts(tmp_path / "chat.jsonl").values())
    assert [t.num_given for t in kept] == [1, 5, 1]  # the second question has the first before it
    assert "never read" not in said


def test_chat_goes_on_after_a_failure(tmp_path, fake, registry):
    answers = iter(["[add(a=1, b=2)]", CallError("server", "gone\x1b[2J"), "again"])
    model = ScriptedModel(lambda request: next(answers))
    settings = LoopSettings(style="prompted", system="Be short.")
    agent = Agent(model, fake, settings=settings, tools=registry.definitions)
    said = _talk(agent, tmp_path / "chat.jsonl", "one", "two")
    assert "model_failed: gone" in said and "again" in said and "\x1b" not in said
    last = model.asked[-1].messages
    assert [m["role"] for m in last] == ["system", "user"] and last[1]["content"] == "two"
