"""A registry of small tools, some of which misbehave, and scripted models."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import agent_loop_tools  # noqa: E402

from agents_jax.llm import Choice, ScriptedModel, ToolCall  # noqa: E402
from agents_jax.tools.definitions import ToolDefinition  # noqa: E402
from agents_jax.tools.execution import Executor  # noqa: E402
from agents_jax.tools.registry import LocalTool, Registry  # noqa: E402


def _definition(name, **properties):
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ToolDefinition(name, f"{name} something", schema)


ADD = _definition("add", a={"type": "integer"}, b={"type": "integer"})
REGISTRY = Registry(
    [
        LocalTool(ADD, agent_loop_tools.add),
        LocalTool(_definition("raises", text={"type": "string"}), agent_loop_tools.raises),
        LocalTool(_definition("hangs"), agent_loop_tools.hangs),
        LocalTool(_definition("megabyte"), agent_loop_tools.megabyte),
    ]
)


@pytest.fixture(scope="session")
def registry():
    return REGISTRY


@pytest.fixture(scope="session")
def executor():
    """A real one; tools have a second."""
    with Executor(REGISTRY, timeout_s=1.0, max_output_chars=1000) as running:
        yield running


@pytest.fixture
def fake():
    return agent_loop_tools.FakeExecutor()


@pytest.fixture
def native():
    """A choice with native calls: native(('add', '{"a": 1}'), ...)."""

    def make(*calls, text=""):
        found = tuple(
            ToolCall(name, arguments, f"id{i}") for i, (name, arguments) in enumerate(calls)
        )
        return Choice(text, "tool_calls", found)

    return make


@pytest.fixture
def scripted():
    """A model that gives these answers in turn."""

    def make(*answers, **settings):
        return ScriptedModel(list(answers), **settings)

    return make
