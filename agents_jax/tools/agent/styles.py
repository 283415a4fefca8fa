"""How the model is asked for calls, and how they are read: two styles over one conversation.

native: definitions go with the request and calls come back apart from the text, as the endpoint or
  the model's chat template has it. prompted: definitions stand in the system message and calls are
  read from the text; for models and servers that know nothing of tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from agents_jax.llm import GenerateRequest, Response
from agents_jax.tools.agent.policy import Cost, Message, Proposal, text_of
from agents_jax.tools.call_patterns import call_pattern
from agents_jax.tools.calls import Call, CallParseError, Form, parse_calls, render_calls
from agents_jax.tools.literals import read_json

if TYPE_CHECKING:
    from agents_jax.tools.definitions import ToolDefinition

Style = Literal["native", "prompted"]
Choice = Literal["auto", "required", "none"]

FORMS: dict[Form, str] = {
    "python": '[name(parameter="value", other=1)]',
    "json": '[{"name": "name", "arguments": {"parameter": "value"}}]',
    "hermes": '<tool_call>{"name": "name", "arguments": {"parameter": "value"}}</tool_call>',
}
_OFFER = (
    "You can call functions. To call, answer with nothing but calls in the form {form}; their "
    "results come in the next message. Where no function is needed, answer in plain words.\n"
    "Functions: {functions}"
)
NOT_RUN = "Not run yet."
"""Stands where the result of a call will be, in the native style."""
_RETURNED = " returned: "
_MAX_HELD_CALLS = 4  # of one answer: a small model does not end a list by itself
_REQUIRED = "\nThe next answer must be calls."
# Schemas with these say themselves, or by parts, which further arguments there may be.
_OPEN_KEYS = {
    "additionalProperties", "unevaluatedProperties", "patternProperties", "$ref", "allOf", "anyOf",
    "oneOf", "if", "dependentSchemas",
}  # fmt: skip
# Marks by which model families announce calls, and the beginnings of texts that are calls.
_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=")
_BEGINS = re.compile(
    r"\s*(?:```\w*\s*)?(?:\[\s*)?(?:[A-Za-z_][\w.]*\(|\{\s*\"(?:name|function|type|arguments)\"\s*:)"
)


def request_fields(
    style: Style,
    messages: Sequence[Message],
    tools: Sequence[ToolDefinition],
    choice: Choice,
    *,
    form: Form = "python",
    constrained: bool = False,
) -> dict[str, Any]:
    """Fields of a GenerateRequest: messages, and in the native style tools and tool_choice.

    Args:
      messages: in the OpenAI form.
      choice: 'none' withholds the tools, 'required' demands a call.
      form: in which the prompted style wants calls. constrained: allow it no other text where a
        call is required.

    Raises:
      CallPatternError: tools that the form cannot write.
    """
    offered = () if choice == "none" else tuple(tools)
    fields: dict[str, Any]
    if style == "prompted":
        fields = {"messages": _prompted(messages, offered, choice, form)}
        if constrained and choice == "required" and offered:
            fields["regex"] = call_pattern(offered, form, max_calls=_MAX_HELD_CALLS)
        return fields
    fields = {"messages": _native(messages)}
    if offered:
        fields["tools"] = tuple(_closed(tool) for tool in offered)
        fields["tool_choice"] = choice
    return fields


def _closed(tool: ToolDefinition) -> dict[str, Any]:
    """The OpenAI form, saying that there are no arguments beside those named.

    Execution refuses others anyway (`check_arguments`); where decoding is bound to the schema, a
    model that may add some does so until its tokens are spent.
    """
    form = tool.openai()
    function = form["function"]
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not parameters.keys() & _OPEN_KEYS:
        parameters = {**parameters, "additionalProperties": False}
    return {**form, "function": {**function, "parameters": parameters}}


def read_answer(response: Response, tools: Sequence[ToolDefinition], seconds: float) -> Proposal:
    """The first sample of a response as a proposal; `tools` are those that were offered.

    Where none were, every text is an answer in words.
    """
    usage = response.usage
    cost = Cost(1, usage.prompt_tokens, usage.completion_tokens, seconds)
    text, finish = response.text, response.finish_reason
    calls: tuple[Call, ...] | None = ()
    ids: tuple[str, ...] = ()
    problem = ""
    if response.tool_calls and tools:
        try:
            calls = tuple(_native_call(call.name, call.arguments) for call in response.tool_calls)
            ids = tuple(call.id for call in response.tool_calls)
        except CallParseError as error:
            calls, problem = None, str(error)
            written = [f"{call.name}({call.arguments})" for call in response.tool_calls]
            text = "\n".join(filter(None, [text, *written]))
    elif tools:
        calls, problem = _read_text(text, [tool.name for tool in tools])
    if len(set(ids)) < len(ids) or not all(ids):
        ids = ()
    return Proposal(
        text=text, calls=calls, problem=problem, call_ids=ids, finish_reason=finish, cost=cost
    )


def offers_tools(request: GenerateRequest) -> bool:
    """Whether a request made by `request_fields` offers tools, in whichever style."""
    return bool(request.tools) or text_of(request.messages[0]).startswith(_OFFER[:24])


def demands_call(request: GenerateRequest) -> bool:
    """Whether it was made with choice 'required'."""
    return request.tool_choice == "required" or _REQUIRED in text_of(request.messages[0])


def result_of(message: Message) -> str | None:
    """The result (or results) of calls that a rendered message holds; None where it holds none."""
    if message.get("role") == "tool":
        return text_of(message)
    before, returned, after = text_of(message).partition(_RETURNED)
    is_result = message.get("role") == "user" and returned and " " not in before
    return after if is_result else None


def _native_call(name: str, arguments: str) -> Call:
    ((name, values),) = read_json(json.dumps({"name": name, "arguments": arguments or "{}"}))
    return Call(name, values)


def _read_text(text: str, names: Sequence[str]) -> tuple[tuple[Call, ...] | None, str]:
    """Calls of a text and why they cannot be read; ((), '') for an answer in words."""
    try:
        return tuple(parse_calls(text)), ""
    except CallParseError as error:
        return (None, str(error)) if meant_as_calls(text, names) else ((), "")


def meant_as_calls(text: str, names: Sequence[str]) -> bool:
    """Whether a text looks like calls: a mark of some model family, the beginning of a call, or
    the name of an offered function before a bracket."""
    if any(mark in text for mark in _MARKS) or _BEGINS.match(text):
        return True
    return any(re.search(rf"(?<!\w){re.escape(name)}\(", text) for name in names)


def _native(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation for a model that knows tools.

    Calls without an observation (those shown to the model again to be refined) get one that says
    so, since servers refuse a conversation with calls left open.
    """
    found: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        message = dict(message)
        found.append(message)
        calls = message.get("tool_calls") or ()
        if not calls:
            continue
        if _holds_calls(text_of(message)):
            message["content"] = None  # the calls stand in tool_calls already
        answered = set()
        for later in messages[index + 1 :]:
            if later.get("role") != "tool":
                break
            answered.add(later.get("tool_call_id"))
        found += [
            {"role": "tool", "tool_call_id": call.get("id", ""), "content": NOT_RUN}
            for call in calls
            if call.get("id") not in answered
        ]
    return found


def _prompted(
    messages: Sequence[Message], tools: Sequence[ToolDefinition], choice: Choice, form: Form
) -> list[dict[str, Any]]:
    """The conversation with plain roles: functions in the system message, results by the user."""
    out: list[dict[str, Any]] = []
    results = False
    for message in messages:
        role = message.get("role")
        if role == "tool":
            text = f"{message.get('name') or 'function'}{_RETURNED}{text_of(message)}"
            if results:
                out[-1]["content"] += f"\n{text}"
            else:
                out.append({"role": "user", "content": text})
        elif role == "assistant":
            out.append({"role": role, "content": _as_text(message, form)})
        else:
            out.append({"role": role, "content": text_of(message)})
        results = role == "tool"
    if tools:
        functions = [tool.openai()["function"] for tool in tools]
        offer = _OFFER.format(
            form=FORMS[form],
            functions=json.dumps(functions, ensure_ascii=False, separators=(",", ":")),
        )
        if choice == "required":
            offer += _REQUIRED
        if out and out[0]["role"] == "system":
            offer += "\n\n" + out.pop(0)["content"]
        out.insert(0, {"role": "system", "content": offer})
    return out


def _as_text(message: Message, form: Form) -> str:
    """An assistant's message as it would have been written, calls included."""
    text = text_of(message)
    calls = message.get("tool_calls") or ()
    if calls and _holds_calls(text):
        return text  # the calls as the model itself wrote them
    return "\n".join(filter(None, [text, _render(calls, form)]))


def _holds_calls(text: str) -> bool:
    try:
        return bool(parse_calls(text))
    except CallParseError:
        return False


def _render(calls: Sequence[Mapping[str, Any]], form: Form) -> str:
    if not calls:
        return ""
    found = [
        _native_call(call["function"]["name"], call["function"]["arguments"]) for call in calls
    ]
    try:
        return render_calls(found, form)
    except ValueError:  # a name that is no identifier has no Python form
        return render_calls(found, "json")
