"""What plugs into the agent loop: policies that decide whether to call, refiners of what is called.

The loop (loop.py) asks the policy before every turn of the model, and the refiner after every turn
in which the model wrote calls. Both see the conversation in the OpenAI form, whatever the style in
which the model is asked. plugins.py names them for configurations: a new one is a line there and a
function `make(model, **options)`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from agents_jax.tools.agent.plain import plain
from agents_jax.tools.calls import Call

if TYPE_CHECKING:
    from agents_jax.tools.definitions import ToolDefinition

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What something took: calls of a model, tokens read and written, wall seconds."""

    model_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.model_calls + other.model_calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """Where a task stands before a turn of the model.

    messages: the conversation in the OpenAI form, without the prompt that offers the tools; calls
      made stand in `tool_calls` of assistant messages, observations in messages of role 'tool'.
    tools: the candidates that would be offered at this turn.
    turn: turns of the model so far. num_calls: calls of tools made so far in this task; a policy
      that decides once per task decides where it is 0, and returns `call=None` afterwards.
    query: what the user asked last, which is not always the last message of role 'user' (the loop
      tells the model of unreadable calls in such messages); None takes that message.
    """

    task_id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...]
    turn: int = 0
    num_calls: int = 0
    query: str | None = None

    def __post_init__(self):
        if self.query is None:
            object.__setattr__(self, "query", last_query(self.messages))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether tools are called at this turn.

    call: True: required (the model is told, or forced, to call), False: withheld (the model sees
      none), None: offered, the model chooses. Withheld tools make this turn the final answer.
    score: what the decision rests on, for the transcript; None for nothing. reason: in words.
    cost: what deciding took, model calls of the policy's own included.
    """

    call: bool | None
    score: float | None = None
    reason: str = ""
    cost: Cost = Cost()

    def __post_init__(self):
        if self.call is not None and not isinstance(self.call, bool):
            raise ValueError(f"call={self.call!r} is not allowed; True, False or None.")


@runtime_checkable
class CallPolicy(Protocol):
    """Decides whether tools are offered. An exception ends the task as 'policy_failed'."""

    name: str

    def decide(self, state: State) -> Decision: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """One answer of the model, read.

    text: as written (without native tool calls). calls: `()` is an answer in words; None is a text
      that is meant as calls and cannot be read as such, and `problem` says why.
    call_ids: of native calls, as the endpoint named them; () otherwise.
    """

    text: str
    calls: tuple[Call, ...] | None = ()
    problem: str = ""
    call_ids: tuple[str, ...] = ()
    finish_reason: str = "stop"
    cost: Cost = Cost()

    def __post_init__(self):
        if self.call_ids and len(self.call_ids) != len(self.calls or ()):
            raise ValueError(
                f"{len(self.call_ids)} call_ids for {len(self.calls or ())} calls; one each is "
                "needed, or none."
            )

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message in the OpenAI form."""
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        # Nine letters or digits: what the strictest of the servers (Mistral's template) takes.
        ids = self.call_ids or tuple(f"call{number:05d}" for number in range(len(self.calls)))
        calls = [
            {
                "id": name,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(plain(call.arguments), ensure_ascii=False),
                },
            }
            for name, call in zip(ids, self.calls, strict=True)
        ]
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls}


class Ask(Protocol):
    """The model's answer after `state.messages` and `extra`, asked as the proposal was.

    Tools, style and limits are the loop's. temperature None: the loop's own. sample: number of the
    sample, which tells repeated requests at a temperature apart.

    A refinement by one more look is `ask([proposal.message, user("Check your call ...")])`.

    Raises:
      AskError: the model did not answer, or the task's time is over. Leave it to the loop, which
        ends the task and keeps what was asked before.
    """

    def __call__(
        self, extra: Sequence[Message] = (), *, temperature: float | None = None, sample: int = 0
    ) -> Proposal: ...


AskKind = Literal["time_limit", "model_failed"]


class AskError(Exception):
    """Why `Ask` gave no answer; failure: kind of the call's failure, see llm.errors."""

    def __init__(self, kind: AskKind, message: str, failure: str = ""):
        super().__init__(message)
        self.kind = kind
        self.failure = failure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refinement:
    """What is called in place of what was proposed.

    proposal: the final one: one of the steps, or the first proposal. steps: answers of the model
      that were asked for, in their order. reason: why it ended, such as 'equal' or 'max_steps'.
    """

    proposal: Proposal
    steps: tuple[Proposal, ...] = ()
    reason: str = ""

    @property
    def cost(self) -> Cost:
        """Sum over the steps."""
        return sum((step.cost for step in self.steps), Cost())


@runtime_checkable
class Refiner(Protocol):
    """Reworks proposals with calls, or with calls that cannot be read (`calls is None`); answers in
    words are not shown to it. An exception other than AskError ends the task as 'refiner_failed'.
    """

    name: str

    def refine(self, state: State, proposal: Proposal, ask: Ask) -> Refinement: ...


def last_query(messages: Sequence[Message]) -> str:
    """Text of the last message of role 'user'; '' where there is none."""
    return next((text_of(m) for m in reversed(messages) if m.get("role") == "user"), "")


def text_of(message: Message) -> str:
    """Text of a message: its content, or the text parts of it."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(
        part["text"]
        for part in parts
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    )
