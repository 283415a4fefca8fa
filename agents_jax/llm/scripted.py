"""A model that says what a test tells it to."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agents_jax.llm.call_log import Transcript
from agents_jax.llm.capabilities import CAPABILITIES, Capabilities
from agents_jax.llm.errors import CallError, InvalidRequest
from agents_jax.llm.hashing import digest
from agents_jax.llm.interface import BaseModel
from agents_jax.llm.requests import GenerateRequest, HiddenStatesRequest, ScoreRequest
from agents_jax.llm.results import Choice, ContinuationScore, HiddenStates, Response, Scores, Usage

Answer = str | Choice | Exception
Answers = Sequence[Answer] | Mapping[str, Any] | Callable[[GenerateRequest], Any]


def prompt_text(request: Any) -> str:
    """What a pattern is searched in: the prompt, or 'role: content' lines of the messages."""
    if request.prompt is not None:
        return request.prompt
    return "\n".join(f"{m['role']}: {m.get('content') or ''}" for m in request.messages)


class ScriptedModel(BaseModel):
    """Answers from a script.

    Args:
      answers: a sequence (used up in the order of requests), a mapping from regular expressions
        (searched in the prompt; the first that is found) to answers, or a function of the request
        (of one sample), which may be asynchronous. An answer is a text, a Choice, or an exception
        to raise (CallError(kind, ...) for a failed call); in a mapping it may be a function too.
      scores: log-probability of a continuation: a function (request, continuation) -> float or
        Sequence[float] (per token), or a mapping from continuations to either.
      hidden: function of the request that gives an array [num_layers, num_positions, d_model]; or
        an int d_model for arrays that depend on the request alone.
      capabilities: names; None for all.
      delay: seconds that an answer takes: a number or a function of the request.

    Attributes:
      asked: requests (parts of one sample) that came, in the order in which they began.
    """

    def __init__(
        self,
        answers: Answers = (),
        *,
        scores: Mapping[str, Any] | Callable[[ScoreRequest, str], Any] | None = None,
        hidden: int | Callable[[HiddenStatesRequest], np.ndarray] | None = None,
        name: str = "scripted",
        capabilities: Sequence[str] | None = None,
        delay: float | Callable[[Any], float] = 0.0,
        concurrency: int = 8,
        transcript: Transcript | None = None,
    ):
        names = frozenset(CAPABILITIES if capabilities is None else capabilities)
        if scores is None:
            names -= {"score"}
        if hidden is None:
            names -= {"hidden_states"}
        super().__init__(
            name,
            Capabilities(names),
            identity={"kind": "scripted", "model": name},
            concurrency=concurrency,
            transcript=transcript,
        )
        self._answers = answers
        self._next = iter(answers) if isinstance(answers, Sequence) else None
        self._scores = scores
        self._hidden = hidden
        self._delay = delay
        self.asked: list[Any] = []

    async def _began(self, request):
        self.asked.append(request)
        seconds = self._delay(request) if callable(self._delay) else self._delay
        if seconds:
            await asyncio.sleep(seconds)

    async def _generate(self, part: GenerateRequest) -> Response:
        answer: Any = self._find(part)  # before any wait, so that a sequence keeps its order
        await self._began(part)
        if callable(answer):
            answer = answer(part)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            answer = Choice(answer)
        if not isinstance(answer, Choice):
            raise InvalidRequest(
                f"The script answered a {type(answer).__name__}; allowed: str, Choice, Exception."
            )
        choice = Choice(
            answer.text, answer.finish_reason, answer.tool_calls, answer.logprobs, part.sample
        )
        # Words stand for tokens here: something to add up, not a tokenizer's count.
        usage = Usage(len(prompt_text(part).split()), len(choice.text.split()))
        return Response(choices=(choice,), usage=usage)

    def _find(self, part) -> Any:
        if callable(self._answers):
            return self._answers
        if isinstance(self._answers, Mapping):
            text = prompt_text(part)
            for pattern, answer in self._answers.items():
                if re.search(pattern, text, re.DOTALL):
                    return answer
            return CallError("bad_request", f"The script has no pattern for: {text[:200]!r}")
        found = next(self._next, None)
        if found is None:
            return CallError(
                "bad_request", f"The script of {len(self._answers)} answers is used up."
            )
        return found

    async def _score(self, part: ScoreRequest) -> Scores:
        await self._began(part)
        found = []
        for text in part.continuations:
            if isinstance(self._scores, Mapping):
                if text not in self._scores:
                    raise InvalidRequest(
                        f"The script has no score for {text!r}; it has {list(self._scores)}."
                    )
                value = self._scores[text]
            else:
                value = self._scores(part, text)
            if isinstance(value, Exception):
                raise value
            each = tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),)
            tokens = (text,) if len(each) == 1 else tuple(f"{text}[{i}]" for i in range(len(each)))
            found.append(ContinuationScore(text, sum(each), tokens, each))
        return Scores(continuations=tuple(found), method="scripted")

    async def _hidden_states(self, part: HiddenStatesRequest) -> HiddenStates:
        await self._began(part)
        if callable(self._hidden):
            values = self._hidden(part)
            if isinstance(values, Exception):
                raise values
            values = np.asarray(values, np.float32)
        else:
            count = 1 if part.positions == "continuation" else len(part.positions)
            rng = np.random.default_rng(int(digest(part.content())[:15], 16))
            shape = (len(part.layers), count, self._hidden)
            values = rng.standard_normal(shape).astype(np.float32)
        positions = () if part.positions == "continuation" else part.positions
        return HiddenStates(values=values, positions=positions)
