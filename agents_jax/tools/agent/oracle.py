"""A script that solves the built-in tasks: shows a whole run in seconds, without a model.

Where tools are offered it makes a task's right call and answers with the result; without them it
knows the answers of the tasks that need none.
"""

from __future__ import annotations

import json

from agents_jax.llm import Choice, GenerateRequest, ScriptedModel, ToolCall
from agents_jax.tools.agent.builtin_tasks import builtin_tasks, gold_calls
from agents_jax.tools.agent.policy import text_of
from agents_jax.tools.agent.styles import NOT_RUN, demands_call, offers_tools, result_of
from agents_jax.tools.calls import Call, render_calls

UNKNOWN = "I know the built-in tasks only."
NO_TOOL = "I cannot tell without a tool."
_NEEDLESS = Call("calculator", {"expression": "0"})


def oracle_model() -> ScriptedModel:
    """A model that answers as described above, asked in either style (calls in Python form)."""
    tasks = {task.messages[0]["content"]: task for task in builtin_tasks()}
    gold = gold_calls()

    def answer(request: GenerateRequest) -> Choice:
        texts = [text_of(message) for message in request.messages]
        asked = next((i for i in reversed(range(len(texts))) if texts[i] in tasks), None)
        if asked is None:
            return Choice(UNKNOWN)
        task = tasks[texts[asked]]
        known = "" if task.needs_tool else str(task.expected.answers[0])
        results = [result_of(message) for message in request.messages[asked + 1 :]]
        results = [text for text in results if text not in (None, NOT_RUN)]
        if results:
            return Choice(known or f"The result is: {results[-1]}")
        offered = offers_tools(request)
        if offered and (task.needs_tool or demands_call(request)):
            return _call(gold.get(task.id, _NEEDLESS), native=bool(request.tools))
        return Choice(known or NO_TOOL)

    return ScriptedModel(answer, name="oracle")


def _call(call: Call, *, native: bool) -> Choice:
    if native:
        made = ToolCall(call.name, json.dumps(call.arguments), "oracle000")
        return Choice("", "tool_calls", (made,))
    return Choice(render_calls([call]))
