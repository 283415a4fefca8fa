"""Whatever a tool does, its call ends as an observation, and the next call runs."""

from __future__ import annotations

import functools
import gc
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.tools import Call, LocalTool, Registry, ToolDefinition
from agents_jax.tools.execution import ExecutionError, Executor, ToolReferenceError, reference
from agents_jax.tools.execution.observation import cut
from tests.agents_jax.tools import misbehaving

ANY = {"type": "object", "additionalProperties": True}
posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups")


def tool(function, name=None, schema=ANY):
    return LocalTool(ToolDefinition(name or function.__name__, "", schema), function)


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The worker imports tests.agents_jax... from the repository."""
    root = str(pathlib.Path(__file__).resolve().parents[3])
    added = root not in map(os.path.abspath, sys.path)
    if added:
        sys.path.append(root)
    yield
    if added:
        sys.path.remove(root)


@pytest.fixture(scope="module")
def executor():
    functions = [f for f in vars(misbehaving).values() if callable(f) and hasattr(f, "__code__")]
    registry = Registry(map(tool, functions))
    none = {"type": "object", "properties": {}}
    one = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    registry.add(tool(functools.partial(misbehaving.same, text="bound"), "bound", none))
    registry.add(tool(misbehaving.Holder.method, "method", one))
    with Executor(registry, timeout_s=2, max_output_chars=500, max_file_mb=1) as executor:
        yield executor


def test_results_are_text(executor):
    assert executor.run(Call("same", {"text": "ü 漢"})).text == "ü 漢"
    assert (
        executor.run(Call("echo", {"a": (1, None), "b": True})).text
        == '{"a": [1, null], "b": true}'
    )
    assert executor.run(Call("bound")).text == "bound"
    seen = executor.run(Call("method", {"a": 1}))
    assert (seen.ok, seen.error_kind, seen.text, seen.truncated) == (True, None, "2", False)
    assert 0 < seen.seconds < 60
    assert executor.run(Call("same", {"text": "half \ud800 pair"})).text == "half \ufffd pair"


def test_no_run_without_fitting_arguments(executor):
    seen = executor.run(Call("method", {"a": "1", "b": 2}))
    assert seen.error_kind == "bad_arguments" and not seen.ok
    assert 'a: "1" is not allowed; type integer' in seen.text and "b: is unknown" in seen.text
    assert executor.run(Call("bound", {"text": "other"})).error_kind == "bad_arguments"
    seen = executor.run(Call("raise"))
    assert seen.error_kind == "unknown_tool"
    assert "no tool 'raise'. Did you mean raises?" in seen.text


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "text"),
    [
        ("raises", {"message": "no row 3"}, "raised", "LookupError: no row 3"),
        ("raises_badly", {}, "raised", "Silent"),
        ("raises", {"wrong": 1}, "raised", "TypeError"),
        ("leaves", {}, "raised", "SystemExit: 3"),
        ("recurses", {}, "raised", "RecursionError"),
        ("no_json", {}, "bad_result", "returned a set that is not JSON"),
        ("not_a_number", {}, "bad_result", "returned a float that is not JSON"),
        ("dies", {"status": 7}, "died", "exit status 7"),
        pytest.param("segfaults", {}, "died", "signal SIGSEGV", marks=posix),
    ],
)
def test_failures_are_observations_and_the_next_call_runs(executor, name, arguments, kind, text):
    seen = executor.run(Call(name, arguments))
    assert (seen.ok, seen.error_kind) == (False, kind)
    assert text in seen.text
    assert executor.run(Call("same", {"text": "still here"})).text == "still here"


def test_state_lives_as_long_as_the_process(executor):
    executor.run(Call("dies"))
    assert [executor.run(Call("count")).text for _ in range(2)] == ["1", "2"]
    executor.run(Call("raises"))
    assert executor.run(Call("count")).text == "3"
    executor.run(Call("dies"))
    assert executor.run(Call("count")).text == "1"


def test_a_megabyte_is_cut_and_says_so(executor):
    seen = executor.run(Call("long_text", {"chars": 1_000_000}))
    assert seen.ok and seen.truncated and seen.error_kind is None
    assert seen.text == "x" * 500 + "\n[cut here: 999500 of 1000000 characters left out]"
    seen = executor.run(Call("raises", {"message": "y" * 100_000}))
    assert seen.error_kind == "raised" and seen.truncated and len(seen.text) < 600
    seen = executor.run(Call("z" * 100_000))
    assert seen.error_kind == "unknown_tool" and len(seen.text) < 600


def test_what_a_tool_prints_goes_nowhere(executor, capfd):
    assert executor.run(Call("chatters")).text == "done"
    assert executor.run(Call("count")).ok
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["hangs", "spins"])
def test_a_tool_that_hangs_is_stopped(name):
    registry = Registry([tool(getattr(misbehaving, name)), tool(misbehaving.same)])
    with Executor(registry, timeout_s=0.3) as executor:
        executor.start()
        seen = executor.run(Call(name))
        assert seen.error_kind == "timed_out"
        assert seen.text == f"{name} was stopped: no answer within 0.3 s."
        assert seen.seconds >= 0.3
        assert executor.run(Call("same", {"text": "next"})).text == "next"


def _gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for is a zombie."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = pathlib.Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@posix
def test_children_of_a_stopped_tool_are_stopped(tmp_path):
    registry = Registry([tool(misbehaving.starts_a_child)])
    with Executor(registry, timeout_s=4) as executor:
        path = tmp_path / "pid"
        assert executor.run(Call("starts_a_child", {"path": str(path)})).error_kind == "timed_out"
        assert _gone(int(path.read_text()))


@posix
def test_a_child_that_holds_the_pipe_does_not_hide_a_death(tmp_path):
    registry = Registry([tool(misbehaving.leaves_a_child_and_dies)])
    with Executor(registry, timeout_s=30) as executor:
        path = tmp_path / "pid"
        seen = executor.run(Call("leaves_a_child_and_dies", {"path": str(path)}))
        assert seen.error_kind == "died" and "exit status 1" in seen.text
        assert _gone(int(path.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
def test_memory_and_files_are_limited(executor, tmp_path):
    seen = executor.run(Call("takes_memory", {"megabytes": 4000}))
    assert (seen.error_kind, seen.text) == ("raised", "MemoryError")
    assert executor.run(Call("takes_memory", {"megabytes": 10})).ok
    path = str(tmp_path / "file")
    assert executor.run(Call("writes", {"path": path, "chars": 1000})).ok
    seen = executor.run(Call("writes", {"path": path, "chars": 2 << 20}))
    assert not seen.ok and os.path.getsize(path) <= 1 << 20


def test_the_environment_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    registry = Registry([tool(misbehaving.variable)])
    with Executor(registry, environment={"GIVEN": "yes"}) as executor:
        assert executor.run(Call("variable", {"name": "SECRET_TOKEN"})).text == "null"
        assert executor.run(Call("variable", {"name": "GIVEN"})).text == "yes"


def test_a_module_that_cannot_be_loaded_spoils_its_tool_only(tmp_path, monkeypatch):
    path = tmp_path / "once_only.py"
    path.write_text("def run():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import once_only

    registry = Registry([tool(once_only.run), tool(misbehaving.same)])
    path.write_text("import absent_module_of_this_test\n")
    with Executor(registry) as executor:
        seen = executor.run(Call("run"))
        assert seen.error_kind == "raised" and "absent_module_of_this_test" in seen.text
        assert executor.run(Call("same", {"text": "fine"})).ok


def test_a_process_that_does_not_start_is_told(tmp_path, monkeypatch):
    path = tmp_path / "deadly.py"
    path.write_text("def run():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import deadly

    path.write_text(
        "import os, sys\nsys.stderr.write('out of luck')\nsys.stderr.flush()\nos._exit(9)"
    )
    with Executor(Registry([tool(deadly.run)])) as executor:
        seen = executor.run(Call("run"))
        assert seen.error_kind == "died" and "out of luck" in seen.text
        with pytest.raises(ExecutionError, match="did not start.*exit status 9.*out of luck"):
            executor.start()


def test_tools_of_a_script_are_found(tmp_path):
    script = tmp_path / "agent.py"
    script.write_text(
        "from agents_jax.tools import Call, Registry\n"
        "from agents_jax.tools.execution import Executor\n"
        "registry = Registry()\n"
        "@registry.register('twice', '', {'type': 'object', 'properties': {'a': {}}})\n"
        "def twice(a):\n"
        "    return 2 * a\n"
        "if __name__ == '__main__':\n"
        "    with Executor(registry) as executor:\n"
        "        print(executor.run(Call('twice', {'a': 21})).text)\n"
    )
    root = str(pathlib.Path(__file__).resolve().parents[3])
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("42\n", "")


def test_the_example_of_the_page_prints_what_stands_there(tmp_path):
    root = pathlib.Path(__file__).resolve().parents[3]
    page = (root / "docs" / "tools.md").read_text(encoding="utf-8")
    code, shown = re.findall(r"```(?:python)?\n(.*?)```", page, re.DOTALL)[:2]
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert ran.stderr == "" and ran.stdout.startswith(shown)


def test_an_interrupt_leaves_no_reply_behind(executor, monkeypatch):
    executor.start()
    worker = executor._worker

    def interrupted(timeout_s):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executor.run(Call("same", {"text": "lost"}))
    assert not worker.alive
    assert executor.run(Call("same", {"text": "mine"})).text == "mine"


@posix
def test_the_process_ends_with_its_executor_and_with_its_parent(tmp_path):
    executor = Executor(Registry([tool(misbehaving.same)]))
    executor.start()
    pid = executor._worker._process.pid
    del executor
    gc.collect()
    assert _gone(pid)
    root = str(pathlib.Path(__file__).resolve().parents[3])
    code = (
        "import os\n"
        "from agents_jax.tools import LocalTool, Registry, ToolDefinition\n"
        "from agents_jax.tools.execution import Executor\n"
        "from agents_jax.tools.local_tools.dates import day_of_week\n"
        "executor = Executor(Registry([LocalTool(ToolDefinition('f'), day_of_week)]))\n"
        "executor.start()\n"
        "print(executor._worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert ran.returncode == -9 and _gone(int(ran.stdout))


def test_functions_must_be_importable():
    def inner():
        pass

    for function, reason in (
        (inner, "cannot be imported by another process"),
        (lambda: 1, "cannot be imported by another process"),
        (misbehaving.Holder(), "cannot be imported by another process"),
        (functools.partial(misbehaving.same, pathlib.Path("x")), "must be JSON values"),
        (functools.partial(misbehaving.same, (1,)), "must be JSON values"),
    ):
        with pytest.raises(ToolReferenceError, match=f"tool 'f': .*{reason}"):
            Executor(Registry([tool(function, "f")]))


def test_bound_values_nest():
    once = functools.partial(misbehaving.echo, 1, a=1, b=1)
    found = reference(functools.partial(once, 2, b=2), "f")
    assert (found["args"], found["kwargs"]) == ([1, 2], {"a": 1, "b": 2})
    assert found["qualname"] == "echo" and found["module"].endswith("misbehaving")


@pytest.mark.parametrize(
    "limit", [{"timeout_s": 0}, {"timeout_s": "3"}, {"max_output_chars": -1}, {"memory_mb": True},
              {"max_file_mb": float("nan")}, {"start_timeout_s": float("inf")}],
)  # fmt: skip
def test_limits_are_checked(limit):
    with pytest.raises(ValueError, match=f"{next(iter(limit))}=.* is not allowed; a number above"):
        Executor(Registry(), **limit)


def test_closed_executors_say_so(executor):
    other = Executor(Registry([tool(misbehaving.same)]))
    other.close()
    other.close()
    with pytest.raises(ExecutionError, match="is closed"):
        other.run(Call("same", {"text": "x"}))


def test_calls_of_several_threads_get_their_own_results(executor):
    results = {}

    def ask(number):
        results[number] = [executor.run(Call("echo", {"n": [number, i]})).text for i in range(5)]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [f'{{"n": [{n}, {i}]}}' for i in range(5)] for n in range(4)}


_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.text(),
              st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


@given(_values)
@settings(max_examples=60, deadline=None)
def test_arguments_arrive_as_they_are(executor, value):
    seen = executor.run(Call("echo", {"a": value}))
    whole = json.dumps({"a": value}, ensure_ascii=False)
    whole = whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert seen.ok and seen.text == cut(whole, 500)[0]


@given(st.text(max_size=30), st.integers(1, 40))
def test_cut_keeps_what_fits(text, most):
    shown, was_cut = cut(text, most)
    assert was_cut == (len(text) > most)
    assert shown.startswith(text[:most].encode("utf-8", "replace").decode()) or "\ufffd" in shown
    if was_cut:
        assert shown.endswith(f"[cut here: {len(text) - most} of {len(text)} characters left out]")
