"""The prompt with worked examples."""

import json

from agents_jax.tools import parse_calls
from agents_jax.tools.bfcl.data import make_item
from agents_jax.tools.bfcl.prompts import prompt_messages
from agents_jax.tools.toolace_r.few_shot import few_shot_messages
from tests.agents_jax.tools.toolace_r.test_selection import item


def test_two_conversations_stand_before_the_question():
    one = item(5)
    messages = few_shot_messages(one)
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m["role"] for m in messages] == roles
    assert [c.name for i in (2, 4) for c in parse_calls(messages[i]["content"])] == [
        "get_weather", "math.add",
    ]  # fmt: skip
    zero = prompt_messages(one)
    # Nothing of the zero-shot prompt is lost: instruction, functions, question.
    instruction, functions = zero[0]["content"].split("\nFunctions: ")
    assert messages[0]["content"] == instruction
    assert messages[-1]["content"] == f"Functions: {functions}\n\nQuestion 5."
    assert json.loads(functions)[0]["name"] == "f5"


def test_earlier_turns_and_a_system_message_of_the_item_stay():
    function = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {}}}
    question = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Second."},
    ]
    made = make_item({"id": "x", "question": [question], "function": [function]}, "live_simple")
    messages = few_shot_messages(made)
    assert [m["content"] for m in messages[-2:]] == ["Yes?", "Second."]
    assert messages[-3]["content"].endswith("Be brief.\n\nFirst.")
