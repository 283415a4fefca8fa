"""The process of the environments: what runs in it, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from agents_jax.tools import Call
from agents_jax.tools.bfcl.multi_turn import sandbox as module
from agents_jax.tools.bfcl.multi_turn import worker
from agents_jax.tools.bfcl.multi_turn.sandbox import ENVIRONMENTS, Limits, Sandbox, SandboxError
from agents_jax.tools.bfcl.multi_turn.tagged import literal
from pangu_jax.data.wheel import WheelUnavailableError
from tests.agents_jax.tools.bfcl.multi_turn_made import FILES

pytest.importorskip("mpmath")


@pytest.fixture(scope="module")
def sandbox():
    try:
        with Sandbox() as made:
            yield made
    except WheelUnavailableError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")


def files(sandbox, **settings):
    return sandbox.episode(["GorillaFileSystem"], FILES, **settings)


def test_calls_are_executed_in_order_and_errors_are_results(sandbox):
    with files(sandbox) as episode:
        assert {"ls", "cd", "mkdir"} <= set(episode.function_names)
        results = episode.execute(
            [
                Call("pwd"),
                Call("mkdir", {"dir_name": "new"}),
                Call("ls", {"a": True}),
                Call("cat", {"file_name": "a.txt"}),
                Call("cat", {"file": "a.txt"}),
            ]
        )
        assert results[:2] == ['{"current_working_directory": "/work"}', "None"]
        assert '"new"' in results[2] and "one\\ntwo" in results[3]
        assert results[4].startswith("Error during execution: ")
        assert episode.execute([]) == []


def test_nothing_of_an_episode_is_left_for_the_next(sandbox):
    with files(sandbox, sides=("model", "gold")) as episode:
        episode.execute([Call("rm", {"file_name": "a.txt"})], "model")
        (difference,) = episode.differences("model", "gold")
        assert difference == "GorillaFileSystem.root"
        assert "a.txt" in episode.execute([Call("ls")], "gold")[0]
    with files(sandbox) as episode:
        assert "a.txt" in episode.execute([Call("ls")])[0]


@pytest.mark.parametrize(
    "name",
    ["__class__", "__init__", "_load_scenario", "ls.__call__", "root", "eval", "exit", "", "os.x"],
)
def test_only_public_methods_of_the_involved_classes_are_called(sandbox, name):
    with files(sandbox) as episode:
        (result,) = episode.execute([Call(name, {})])
        assert result == f"Error during execution: name {name!r} is not defined"
        (nested,) = episode.execute(
            [Call("cd", {"folder": {name or "x.y": {"command": "id"}}})], nested_calls=True
        )
        assert "is not defined" in nested
        assert episode.execute([Call("book_flight", {})])[0].endswith(
            "'book_flight' is not defined"
        )


def test_nested_calls_run_only_where_asked_for(sandbox):
    call = Call("echo", {"content": {"ls": {"a": True}}})
    with files(sandbox) as episode:
        (result,) = episode.execute([call], nested_calls=True)
        assert "current_directory_content" in result and "b.txt" in result
        assert episode.execute([call]) == ['{"terminal_output": {"ls": {"a": true}}}']


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=12,
)


@hypothesis.given(values)
def test_values_keep_their_types(value):
    """Through the form in which they go to the process."""
    reader = worker.Episode.__new__(worker.Episode)
    read = reader.decoded("model", json.loads(json.dumps(literal(value))))
    assert repr(read) == repr(value)


def test_a_call_that_hangs_is_ended_and_the_next_episode_runs():
    hang = Call("power", {"base": 9, "exponent": 10**8})
    with Sandbox(["MathAPI"], limits=Limits(request_seconds=1.0)) as sandbox:
        with sandbox.episode(["MathAPI"], {}) as episode:
            with pytest.raises(SandboxError, match="did not answer in time") as caught:
                episode.execute([hang])
            assert caught.value.kind == "timeout" and episode.over
            with pytest.raises(SandboxError, match="the episode is over"):
                episode.execute([Call("add", {"a": 1, "b": 2})])
        with sandbox.episode(["MathAPI"], {}) as episode:
            assert episode.execute([Call("add", {"a": 1, "b": 2})]) == ['{"result": 3}']


def test_limits_of_time_and_memory_end_the_episode():
    with Sandbox(["MathAPI"], limits=Limits(cpu_seconds=1)) as sandbox:
        with sandbox.episode(["MathAPI"], {}) as episode:
            with pytest.raises(SandboxError, match="ended with status -") as caught:
                episode.execute([Call("power", {"base": 9, "exponent": 10**8})])
            assert caught.value.kind == "died"
    with Sandbox(["MathAPI"], limits=Limits(memory_bytes=256 << 20)) as sandbox:
        with sandbox.episode(["MathAPI"], {}) as episode:
            big = Call("multiply", {"a": "x" * 1000, "b": 10**9})
            (result,) = episode.execute([big])
            assert "x" * 1001 not in result
        with sandbox.episode(["MathAPI"], {}) as episode:
            assert episode.execute([Call("add", {"a": 1, "b": 2})]) == ['{"result": 3}']


def test_the_process_sees_neither_variables_nor_files_nor_the_network(tmp_path):
    """The hook and the limits themselves, on code that tries."""
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden")
    tries = {
        "read": f"open({str(secret)!r}).read()",
        "write": f"open({str(tmp_path / 'new.txt')!r}, 'w')",
        "socket": "__import__('socket').socket()",
        "run": "__import__('subprocess').run(['true'])",
        "system": "os.system('true')",
        "fork": "os.fork()",
        "remove": f"os.remove({str(secret)!r})",
        "list": "os.listdir('/')",
        "limit": "resource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
        "kill": "os.kill(os.getppid(), 9)",
    }
    script = f"""
import sys; sys.path.insert(0, {str(Path(module.__file__).parent)!r})
import os, resource, socket, subprocess
from worker import confine
confine({{"CPU": 20, "FSIZE": 0}}, ("/nowhere/",))
for name, source in {tries!r}.items():
    try:
        exec(source)
    except PermissionError as error:
        print(name, "refused")
    else:
        print(name, "done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:-1] == [f"{name} refused" for name in tries]
    assert secret.read_text() == "hidden"


def test_variables_are_not_handed_on(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_API_KEY", "hidden")
    with Sandbox(["MathAPI"]) as made:
        environment = Path(f"/proc/{made._process.pid}/environ")
        if environment.exists():
            names = {v.split(b"=")[0] for v in environment.read_bytes().split(b"\0") if v}
            assert names == {b"PYTHONHASHSEED", b"TZ", b"LC_ALL"}
        folder = made._folder.name
        assert os.listdir(folder) == []
        process = made._process
    assert process.poll() is not None and not os.path.exists(folder)


def test_what_cannot_start_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'Shell' is unknown; allowed: GorillaFileSystem"):
        Sandbox(["Shell"])
    with pytest.raises(ValueError, match="cpu_seconds=0 is not allowed"):
        Limits(cpu_seconds=0)
    # Without mpmath, seen through an interpreter without site-packages.
    plain = tmp_path / "python"
    plain.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    plain.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(plain))
    wanted = r"No module named 'mpmath'.*pip install -e '\.\[bfcl\]'"
    with pytest.raises(SandboxError, match=wanted):
        Sandbox(["MathAPI"])


def test_a_scenario_that_cannot_be_loaded_is_named(sandbox):
    with pytest.raises(SandboxError, match="the scenario cannot be loaded") as caught:
        with sandbox.episode(["GorillaFileSystem"], {"GorillaFileSystem": {"root": 5}}):
            pass
    assert caught.value.kind == "scenario"
    with files(sandbox) as episode:
        assert episode.execute([Call("pwd")])


def test_every_environment_starts_from_its_defaults(sandbox):
    for name in ENVIRONMENTS:
        with sandbox.episode([name], {}) as episode:
            assert len(episode.function_names) >= 9
