"""The registry of local tools."""

from __future__ import annotations

import pytest

from agents_jax.tools import LocalTool, Registry, ToolDefinition, ToolDefinitionError


def test_a_mapping_in_order_of_addition():
    registry = Registry()

    @registry.register("second", "Does it.", {"type": "object", "properties": {}})
    def run():
        return "ran"

    first = LocalTool(ToolDefinition("first"), len)
    registry.add(first)
    assert list(registry) == ["second", "first"] and len(registry) == 2
    assert registry["first"] is first and "third" not in registry
    assert run() == "ran" and registry["second"].function is run
    assert [d.name for d in registry.definitions] == ["second", "first"]
    assert list(Registry(registry.values())) == list(registry)


def test_mistakes_are_named():
    tool = LocalTool(ToolDefinition("f"), len)
    with pytest.raises(ToolDefinitionError, match="named 'f' is registered already"):
        Registry([tool, tool])
    with pytest.raises(ToolDefinitionError, match="is not a LocalTool"):
        Registry([len])
    with pytest.raises(ToolDefinitionError, match="a ToolDefinition is needed"):
        LocalTool({"name": "f"}, len)
    with pytest.raises(ToolDefinitionError, match="'f' is a str, which cannot be called"):
        LocalTool(ToolDefinition("f"), "len")
    with pytest.raises(ToolDefinitionError, match="the parameters of 'f'"):
        Registry().register("f", "", {"type": "dict"})(len)
