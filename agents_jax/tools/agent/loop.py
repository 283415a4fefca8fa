"""The agent loop: the model's calls are executed and their results given back until it answers.

Whatever happens (a tool that hangs, a text that is no call, an endpoint that dies), a task ends
with a named reason and a transcript of all that was done until then.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from agents_jax.llm import (
    GenerateRequest,
    InvalidRequest,
    LanguageModel,
    MissingCapability,
    Response,
    background,
    system,
    user,
)
from agents_jax.tools.agent.baselines import Identity, OwnChoice
from agents_jax.tools.agent.policy import (
    AskError,
    CallPolicy,
    Decision,
    Message,
    Proposal,
    Refinement,
    Refiner,
    State,
    last_query,
    text_of,
)
from agents_jax.tools.agent.settings import LoopSettings
from agents_jax.tools.agent.styles import FORMS, Choice, read_answer, request_fields
from agents_jax.tools.agent.tasks import Task
from agents_jax.tools.agent.transcript import End, Transcript, Turn, key_of
from agents_jax.tools.calls import Call
from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.execution import Observation
from agents_jax.tools.retrieval import ToolIndex

REPEATED = "(The same call gave the same result before.)"
"""Added to an observation that the model has seen already."""
_CHOICES: dict[bool | None, Choice] = {None: "auto", True: "required", False: "none"}

Listener = Callable[[str, Turn], None]


class Runs(Protocol):
    """What executes calls: execution.Executor, or anything that always gives an observation."""

    def run(self, call: Call) -> Observation: ...


class Agent:
    """A model with tools.

    Args:
      executor: runs the calls; None where settings.execute is False.
      policy, refiner: see policy.py; None for the model's own choice and for calls as proposed.
      tools: definitions offered to tasks that bring none of their own.
      listener: told ('decision', 'proposal', 'refinement', 'observation' or 'told', turn so far).
    """

    def __init__(
        self,
        model: LanguageModel,
        executor: Runs | None,
        *,
        policy: CallPolicy | None = None,
        refiner: Refiner | None = None,
        settings: LoopSettings | None = None,
        tools: Sequence[ToolDefinition] = (),
        listener: Listener | None = None,
    ):
        self.model = model
        self.executor = executor
        self.policy = policy or OwnChoice()
        self.refiner = refiner or Identity()
        self.settings = settings or LoopSettings()
        self.tools = tuple(tools)
        self.listener = listener
        self._index: ToolIndex | None = None
        if executor is None and self.settings.execute:
            raise ValueError("settings.execute needs an executor; give one, or set it to False.")

    def run(self, task: Task) -> Transcript:
        """The task until its end. Raises nothing: what went wrong stands in the transcript."""
        return _Run(self, task).go()

    def candidates(self, task: Task) -> tuple[ToolDefinition, ...]:
        """Tools offered to a task: its own or the agent's, cut to settings.max_candidates."""
        most = self.settings.max_candidates
        tools = self.tools if task.tools is None else task.tools
        if len(tools) <= most:
            return tools
        if task.tools is not None:
            return tuple(ToolIndex(tools).top(last_query(task.messages), most))
        self._index = self._index or ToolIndex(tools)
        return tuple(self._index.top(last_query(task.messages), most))


def run(
    task: Task,
    model: LanguageModel,
    executor: Runs | None,
    *,
    policy: CallPolicy | None = None,
    refiner: Refiner | None = None,
    settings: LoopSettings | None = None,
    tools: Sequence[ToolDefinition] = (),
) -> Transcript:
    """One task; see Agent."""
    agent = Agent(model, executor, policy=policy, refiner=refiner, settings=settings, tools=tools)
    return agent.run(task)


class _Ended(Exception):
    """Ends the task."""

    def __init__(self, end: End, error: str = "", failure: str = ""):
        super().__init__(error)
        self.end, self.error, self.failure = end, error, failure


class _Run:
    """One task while it runs."""

    def __init__(self, agent: Agent, task: Task):
        self._agent, self._task, self._settings = agent, task, agent.settings
        self._messages: list[Message] = _with_system(agent.settings.system, task.messages)
        self._num_given = len(self._messages)
        self._tools: tuple[ToolDefinition, ...] = ()
        self._turns: list[Turn] = []
        self._answer: str | None = None
        self._results: dict[str, str] = {}  # text of a call's last result
        self._num_calls = self._repeats = self._unparsable = 0
        self._start = time.perf_counter()

    def go(self) -> Transcript:
        try:
            self._tools = self._agent.candidates(self._task)
            for _ in range(self._settings.max_turns):
                self._turn()
            ended = _Ended("turn_limit")
        except _Ended as error:
            ended = error
        except AskError as error:
            ended = _Ended(error.kind, str(error), error.failure)
        except KeyboardInterrupt:
            ended = _Ended("interrupted", "interrupted from the keyboard")
        agent = self._agent
        return Transcript(
            id=self._task.id, model=agent.model.name, policy=agent.policy.name,
            refiner=agent.refiner.name, offered=tuple(tool.name for tool in self._tools),
            messages=tuple(self._messages), num_given=self._num_given, turns=tuple(self._turns),
            answer=self._answer, end=ended.end, error=ended.error, failure=ended.failure,
            seconds=time.perf_counter() - self._start,
        )  # fmt: skip

    def _turn(self) -> None:
        """One turn of the model; raises _Ended where it is the last."""
        state = State(
            task_id=self._task.id, messages=tuple(self._messages), tools=self._tools,
            turn=len(self._turns), num_calls=self._num_calls,
            query=last_query(self._task.messages),
        )  # fmt: skip
        self._turns.append(Turn())
        decision = self._guard("policy_failed", lambda: self._agent.policy.decide(state), Decision)
        self._set("decision", decision=decision)
        ask = _Asking(self, state, _CHOICES[decision.call] if self._tools else "none")
        proposal = ask()
        self._set("proposal", proposal=proposal)
        if proposal.calls != ():
            proposal = self._refine(state, proposal, ask)
        self._messages.append(proposal.message)
        if proposal.calls == ():
            self._answer = proposal.text
            raise _Ended("answer")
        if proposal.calls is None:
            self._tell(proposal)
        elif not self._settings.execute:
            raise _Ended("calls")
        else:
            self._execute(proposal)

    def _refine(self, state: State, proposal: Proposal, ask: _Asking) -> Proposal:
        ask.answers.clear()
        try:
            refinement = self._guard(
                "refiner_failed",
                lambda: self._agent.refiner.refine(state, proposal, ask),
                Refinement,
            )
        except (AskError, _Ended, KeyboardInterrupt):
            steps = tuple(ask.answers)  # what was asked for stays in the transcript
            self._set(
                "refinement",
                refinement=Refinement(proposal=proposal, steps=steps, reason="failed"),
            )
            raise
        self._set("refinement", refinement=refinement)
        return refinement.proposal

    def _tell(self, proposal: Proposal) -> None:
        """Tells the model that its calls cannot be read."""
        if self._unparsable >= self._settings.max_unparsable:
            raise _Ended("unparsable", proposal.problem)
        self._unparsable += 1
        settings = self._settings
        form = "with a JSON object of arguments"
        if settings.style == "prompted":
            form = f"in the form {FORMS[settings.form]}"
        cut = ""
        if proposal.finish_reason == "length":
            cut = f" (it was cut off after {settings.max_tokens} tokens)"
        told = (
            f"Your call could not be read{cut}: {proposal.problem}. Write it again, {form}, or "
            "answer in words."
        )
        self._messages.append(user(told))
        self._set("told", told=told)

    def _execute(self, proposal: Proposal) -> None:
        ids = [call["id"] for call in self._messages[-1]["tool_calls"]]
        for call, name in zip(proposal.calls or (), ids, strict=True):
            if self._num_calls >= self._settings.max_calls:
                raise _Ended("call_limit")
            if self.seconds_left() <= 0:
                raise _Ended("time_limit")
            self._num_calls += 1
            seen = self._observe(call)
            text = seen.text
            key = key_of(call)
            if self._results.get(key) == text:
                self._repeats += 1
                text = f"{text}\n{REPEATED}"
            self._results[key] = seen.text
            self._messages.append(
                {"role": "tool", "tool_call_id": name, "name": call.name, "content": text}
            )
            self._set("observation", observations=(*self._turns[-1].observations, seen))
            if self._repeats > self._settings.max_repeats:
                raise _Ended("repeated_calls")

    def _observe(self, call: Call) -> Observation:
        names = [tool.name for tool in self._tools]
        if call.name not in names:  # the executor may know tools that were not offered
            return Observation(
                call=call, ok=False, error_kind="unknown_tool", seconds=0.0, truncated=False,
                text=f"There is no tool named {call.name[:200]!r}; tools: {', '.join(names)}.",
            )  # fmt: skip
        executor = self._agent.executor
        return self._guard("executor_failed", lambda: executor.run(call), Observation)

    def ask(
        self, messages: Sequence[Message], choice: Choice, temperature: float | None, sample: int
    ) -> Proposal:
        """The model's answer to a conversation; raises AskError."""
        settings = self._settings
        left = self.seconds_left()
        if left <= 0:
            raise AskError("time_limit", f"time_limit_s={settings.time_limit_s:g} is over.")
        start = time.perf_counter()
        try:
            fields = request_fields(
                settings.style, messages, self._tools, choice, form=settings.form,
                constrained=settings.constrained,
            )  # fmt: skip
            request = GenerateRequest(
                **fields, max_tokens=settings.max_tokens, seed=settings.seed, sample=sample,
                temperature=settings.temperature if temperature is None else temperature,
                tag=self._task.id,
            )  # fmt: skip
            response = background.run(_within(left, self._agent.model, request))
        except TimeoutError as error:
            raise AskError(
                "time_limit",
                f"time_limit_s={settings.time_limit_s:g} is over; the model was cut off.",
            ) from error
        except MissingCapability as error:
            raise AskError("model_failed", str(error), "unsupported") from error
        except InvalidRequest as error:
            raise AskError("model_failed", str(error), "bad_request") from error
        except Exception as error:  # of a model of the user's own: the transcript is worth more
            raise AskError("model_failed", f"{type(error).__name__}: {error}") from error
        if response.error is not None:
            raise AskError("model_failed", response.error.message, response.error.kind)
        if not response.choices:
            raise AskError("model_failed", "The answer holds no choice.", "malformed")
        offered = () if choice == "none" else self._tools
        return read_answer(response, offered, time.perf_counter() - start)

    def seconds_left(self) -> float:
        """Until the task's time limit."""
        return self._settings.time_limit_s - (time.perf_counter() - self._start)

    def _set(self, event: str, **fields: Any) -> None:
        """Fills in fields of the turn, and tells of it."""
        self._turns[-1] = dataclasses.replace(self._turns[-1], **fields)
        if self._agent.listener is not None:
            self._agent.listener(event, self._turns[-1])

    def _guard(self, end: End, work: Callable[[], Any], wanted: type) -> Any:
        """The work's result; what a plug-in raises ends the task, not the run."""
        try:
            result = work()
        except AskError:
            raise
        except Exception as error:
            raise _Ended(end, f"{type(error).__name__}: {error}") from error
        if not isinstance(result, wanted):
            raise _Ended(end, f"gave a {type(result).__name__}, not a {wanted.__name__}")
        return result


class _Asking:
    """The `Ask` of one turn; answers: all that came, in their order."""

    def __init__(self, running: _Run, state: State, choice: Choice):
        self._running, self._state, self._choice = running, state, choice
        self.answers: list[Proposal] = []

    def __call__(
        self, extra: Sequence[Message] = (), *, temperature: float | None = None, sample: int = 0
    ) -> Proposal:
        messages = (*self._state.messages, *extra)
        self.answers.append(self._running.ask(messages, self._choice, temperature, sample))
        return self.answers[-1]


def _with_system(text: str, messages: Sequence[Message]) -> list[Message]:
    """The messages below a system message; one of their own joins it, as many templates take one
    only."""
    rest = list(messages)
    if not text:
        return rest
    if rest and rest[0].get("role") == "system":
        text = f"{text}\n\n{text_of(rest.pop(0))}"
    return [system(text), *rest]


async def _within(seconds: float, model: LanguageModel, request: GenerateRequest) -> Response:
    answering = model.agenerate([request], on_error="return")
    (response,) = await asyncio.wait_for(answering, seconds)
    return response
