"""A prompt with two worked examples: what the untuned model is measured with, beside zero-shot."""

from __future__ import annotations

import functools
from typing import Any

from agents_jax.tools.bfcl.data import Item, make_item
from agents_jax.tools.bfcl.prompts import prompt_messages, to_chat


def few_shot_messages(item: Item) -> list[dict[str, Any]]:
    """The compact prompt after two finished conversations of the same form (ours, not of BFCL).

    The functions of each conversation stand in its own user's turn, since a chat has one system
    message.
    """
    instruction = ""
    messages: list[dict[str, Any]] = []
    for example in _examples():
        system, query, answer = to_chat(example)["messages"]
        instruction, functions = _parts(system["content"])
        messages += [{"role": "user", "content": f"{functions}\n\n{query['content']}"}, answer]
    system, *turns = prompt_messages(item)
    _, functions = _parts(system["content"])
    first = next(i for i, turn in enumerate(turns) if turn["role"] == "user")
    turns[first] = {"role": "user", "content": f"{functions}\n\n{turns[first]['content']}"}
    return [{"role": "system", "content": instruction}, *messages, *turns]


def _parts(system: str) -> tuple[str, str]:
    """Instruction, and the functions with what the item's own system message adds."""
    instruction, mark, functions = system.partition("\nFunctions: ")
    return instruction, f"{mark.strip()} {functions}"


@functools.cache
def _examples() -> tuple[Item, Item]:
    weather = _function(
        "get_weather", {"city": ("string", "Name of the city."), "days": ("integer", "Days ahead.")}
    )
    add = _function("math.add", {"a": ("float", "First number."), "b": ("float", "Second number.")})
    return (
        _item("Will it rain in Oslo in the next three days?", weather,
              {"get_weather": {"city": ["Oslo"], "days": [3]}}),
        _item("What is 2.5 and 4 together?", add, {"math.add": {"a": [2.5], "b": [4.0]}}),
    )  # fmt: skip


def _function(name: str, parameters: dict[str, tuple[str, str]]) -> dict[str, Any]:
    properties = {key: {"type": kind, "description": d} for key, (kind, d) in parameters.items()}
    schema = {"type": "dict", "properties": properties, "required": list(parameters)}
    return {"name": name, "description": f"Example {name}.", "parameters": schema}


def _item(question: str, function: dict[str, Any], truth: dict[str, Any]) -> Item:
    entry = {
        "id": f"shot_{function['name']}",
        "question": [[{"role": "user", "content": question}]],
        "function": [function],
    }
    return make_item(entry, "simple_python", [truth])
