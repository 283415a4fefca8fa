"""A model's way through a multi-turn item: answers, calls executed, results given back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator
from typing import Literal

from agents_jax.llm.requests import GenerateRequest
from agents_jax.llm.results import Response, Usage
from agents_jax.tools.bfcl.multi_turn.data import MultiTurnItem
from agents_jax.tools.bfcl.multi_turn.prompts import (
    native_result_messages,
    opening_messages,
    result_messages,
    tool_definitions,
    turn_messages,
)
from agents_jax.tools.bfcl.multi_turn.sandbox import Episode, SandboxError
from agents_jax.tools.bfcl.multi_turn.transcripts import Step, Turn, TurnsTranscript, step_calls
from agents_jax.tools.bfcl.prompts import Style


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How a model is asked.

    calls: 'prompted' (functions in the system message, calls in the text) or 'native' (tools of the
      OpenAI protocol).
    style: of the prompt, see `prompts.prompt_messages`.
    results_as: role of the results of prompted calls, see `multi_turn.prompts.result_messages`.
    max_steps: a turn is cut off, and the item with it, when one more step than this made calls
      (20 in the leaderboard, counted so).
    max_tokens, temperature, seed: of each answer.
    max_result_chars: of a result, as the model is given it; None for all, as in the leaderboard.
    """

    calls: Literal["prompted", "native"] = "prompted"
    style: Style = "compact"
    results_as: Literal["user", "tool"] = "user"
    max_steps: int = 20
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = None
    max_result_chars: int | None = None

    def __post_init__(self):
        allowed = {
            "calls": ("prompted", "native"),
            "style": ("compact", "official"),
            "results_as": ("user", "tool"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(values)}."
                )
        for name in ("max_steps", "max_tokens", "max_result_chars"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} is not allowed; an integer >= 1.")


def play(
    item: MultiTurnItem, episode: Episode, settings: RolloutSettings
) -> Generator[GenerateRequest, Response, TurnsTranscript]:
    """Yields the requests of an item one after the other, takes their responses, and returns the
    transcript; so that the caller can ask a model for many items at once.

    A turn ends with an answer that makes no call or cannot be read. A request that is not answered
    and environments that die end the item; the transcript says so.
    """
    native = settings.calls == "native"
    start = time.perf_counter()
    usage = Usage()
    turns: list[Turn] = []
    messages = opening_messages(item, settings.style, native=native)
    error = None
    for number in range(len(item.turns)):
        if number:
            messages += turn_messages(item, number, settings.style, native=native)
        steps: list[Step] = []
        stopped = "step_limit"
        for _ in range(settings.max_steps + 1):
            response = yield _request(item, number, messages, settings)
            usage += response.usage
            if response.error is not None:
                stopped, error = "failed", f"{response.error.kind}: {response.error.message}"
                break
            step = Step(response.text, tuple((c.name, c.arguments) for c in response.tool_calls))
            calls = step_calls(step, native=native)
            if not calls:
                messages.append({"role": "assistant", "content": response.text})
                steps.append(step)
                stopped = "no_call"
                break
            try:
                results = episode.execute(calls, nested_calls=not native)
            except SandboxError as failure:
                steps.append(step)
                stopped, error = "failed", f"environment: {failure}"
                break
            steps.append(dataclasses.replace(step, results=tuple(results)))
            shown = [_cut(result, settings.max_result_chars) for result in results]
            if native:
                made = [
                    {"id": c.id or f"call_{number}_{len(steps)}_{i}", "name": c.name,
                     "arguments": c.arguments}
                    for i, c in enumerate(response.tool_calls)
                ]  # fmt: skip
                messages += native_result_messages(response.text, made, shown)
            else:
                messages.append({"role": "assistant", "content": response.text})
                messages += result_messages(calls, shown, as_tool=settings.results_as == "tool")
        turns.append(Turn(tuple(steps), stopped))
        if stopped != "no_call":
            break
    return TurnsTranscript(
        item.id, item.category, tuple(turns), native, error, usage, time.perf_counter() - start
    )


def _request(item, turn, messages, settings) -> GenerateRequest:
    return GenerateRequest(
        messages=tuple(messages),
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        tools=tool_definitions(item, turn) if settings.calls == "native" else (),
        tag="bfcl_multi_turn",
        metadata={"id": item.id, "turn": turn},
    )


def _cut(text: str, length: int | None) -> str:
    if length is None or len(text) <= length:
        return text
    return f"{text[:length]} … ({len(text) - length} characters more)"
