"""The interface that methods are written against, and what its implementations share.

An implementation answers one part (a request of one sample, or of several that are cheaper
together) at a time; this file checks capabilities, bounds how many run at once, keeps the order,
tells of every answer as it arrives, and decides what a failure does to the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from agents_jax.llm import background
from agents_jax.llm.call_log import Transcript
from agents_jax.llm.capabilities import Capabilities, require
from agents_jax.llm.errors import BatchError, CallError, InvalidRequest, MissingCapability
from agents_jax.llm.requests import GenerateRequest, HiddenStatesRequest, ScoreRequest
from agents_jax.llm.results import Failure, HiddenStates, Response, Scores, Usage

OnError = Literal["raise", "return"]
# Told of each part of a request and its result as soon as it is answered.
OnAnswer = Callable[[Any, Any], None]
R = TypeVar("R")
_RESULTS = {"generate": Response, "score": Scores, "hidden_states": HiddenStates}


@runtime_checkable
class LanguageModel(Protocol):
    """A model that answers batches; results stand in the order of the requests.

    identity: what names the model in hashes of requests; plain JSON without secrets.
    on_error='raise': at the first failure nothing new is asked, running calls end, and BatchError
      is raised with every answer in it. 'return': all are asked, failures have `error` set.
    """

    name: str
    identity: Mapping[str, Any]
    capabilities: Capabilities

    def generate(
        self, requests: Sequence[GenerateRequest], *, on_error: OnError = "raise"
    ) -> list[Response]: ...

    def score(
        self, requests: Sequence[ScoreRequest], *, on_error: OnError = "raise"
    ) -> list[Scores]: ...

    def hidden_states(
        self, requests: Sequence[HiddenStatesRequest], *, on_error: OnError = "raise"
    ) -> list[HiddenStates]: ...

    async def agenerate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        on_error: OnError = "raise",
        on_answer: OnAnswer | None = None,
    ) -> list[Response]: ...

    async def ascore(
        self,
        requests: Sequence[ScoreRequest],
        *,
        on_error: OnError = "raise",
        on_answer: OnAnswer | None = None,
    ) -> list[Scores]: ...

    async def ahidden_states(
        self,
        requests: Sequence[HiddenStatesRequest],
        *,
        on_error: OnError = "raise",
        on_answer: OnAnswer | None = None,
    ) -> list[HiddenStates]: ...

    def samples_together(self, request: GenerateRequest) -> bool: ...

    def close(self) -> None: ...


class BaseModel:
    """What implementations share. They define `_generate`, `_score` or `_hidden_states`, each from
    one part to its result, raising CallError where there is none.

    Args:
      concurrency: parts answered at once, over all batches of this model together.
      transcript: where every part and its result are written; None for nowhere.
    """

    def __init__(
        self,
        name: str,
        capabilities: Capabilities,
        *,
        identity: Mapping[str, Any],
        concurrency: int = 1,
        transcript: Transcript | None = None,
    ):
        if not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidRequest(f"concurrency={concurrency!r} is not allowed; an integer >= 1.")
        self.name = name
        self.capabilities = capabilities
        self.identity = identity
        self.concurrency = concurrency
        self.transcript = transcript
        self._owned = contextlib.ExitStack()
        self._gate: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return f"{type(self).__name__}({self.name!r})"

    def close(self) -> None:
        """Frees connections and files; the model takes no more requests."""
        self._owned.close()

    def own(self, resources: contextlib.ExitStack) -> None:
        """Has `resources` closed with the model."""
        self._owned.push(resources)

    def samples_together(self, request: GenerateRequest) -> bool:
        """Whether the n samples of `request` are asked in one call."""
        return False

    def generate(self, requests, *, on_error: OnError = "raise") -> list[Response]:
        """Answers in the order of the requests.

        Raises:
          MissingCapability: before anything is asked. BatchError: see LanguageModel.
        """
        return background.run(self._batch(requests, on_error, None, GenerateRequest))

    def score(self, requests, *, on_error: OnError = "raise") -> list[Scores]:
        """Log-probabilities of continuations, in the order of the requests; raises as generate."""
        return background.run(self._batch(requests, on_error, None, ScoreRequest))

    def hidden_states(self, requests, *, on_error: OnError = "raise") -> list[HiddenStates]:
        """Hidden states, in the order of the requests; raises as generate."""
        return background.run(self._batch(requests, on_error, None, HiddenStatesRequest))

    async def agenerate(self, requests, *, on_error: OnError = "raise", on_answer=None):
        """As generate. on_answer(part, response) is called for each part as it is answered."""
        return await background.hand_over(
            self._batch(requests, on_error, on_answer, GenerateRequest)
        )

    async def ascore(self, requests, *, on_error: OnError = "raise", on_answer=None):
        """As score, with on_answer as in agenerate."""
        return await background.hand_over(self._batch(requests, on_error, on_answer, ScoreRequest))

    async def ahidden_states(self, requests, *, on_error: OnError = "raise", on_answer=None):
        """As hidden_states, with on_answer as in agenerate."""
        return await background.hand_over(
            self._batch(requests, on_error, on_answer, HiddenStatesRequest)
        )

    async def _generate(self, part: GenerateRequest) -> Response:
        raise NotImplementedError

    async def _score(self, part: ScoreRequest) -> Scores:
        raise NotImplementedError

    async def _hidden_states(self, part: HiddenStatesRequest) -> HiddenStates:
        raise NotImplementedError

    async def _batch(self, requests, on_error, on_answer, wanted):
        if on_error not in ("raise", "return"):
            raise InvalidRequest(f"on_error={on_error!r} is unknown; allowed: raise, return.")
        requests = list(requests)
        for index, request in enumerate(requests):
            if not isinstance(request, wanted):
                raise InvalidRequest(
                    f"requests[{index}] is a {type(request).__name__}; {wanted.__name__} is needed."
                )
            require(self.name, self.capabilities, request.needs(), f"requests[{index}]")
        parts = [
            (index, part) for index, request in enumerate(requests) for part in self._parts(request)
        ]
        answers, cause = await self._answer(parts, on_error, on_answer)
        results: list[list] = [[] for _ in requests]
        for (index, _), answer in zip(parts, answers, strict=True):
            results[index].append(answer)
        merged = [merge(pieces) for pieces in results]
        if on_error == "raise" and any(result.error for result in merged):
            if isinstance(cause, MissingCapability) and all(result.error for result in merged):
                raise cause  # nothing was answered that a BatchError would have to save
            raise BatchError(merged) from cause
        return merged

    def _parts(self, request):
        if request.kind != "generate" or request.n == 1 or self.samples_together(request):
            return [request]
        return [
            dataclasses.replace(request, n=1, sample=request.sample + i) for i in range(request.n)
        ]

    async def _answer(self, parts, on_error, on_answer) -> tuple[list, Exception | None]:
        """One result per part, and the first failure; workers take parts in their order."""
        answers: list[Any] = [None] * len(parts)
        queue = iter(enumerate(parts))
        stop: Failure | None = None
        cause: Exception | None = None

        async def work():
            nonlocal stop, cause
            for number, (_, part) in queue:
                if stop is not None:
                    answers[number] = empty_result(part, stop, self.name)
                    continue
                async with self._slot():
                    answers[number], error = await self._one(part)
                if on_answer is not None and (error is None or part.kind == "generate"):
                    on_answer(part, answers[number])  # of n samples some may be there
                if error is not None:
                    cause = cause or error
                    if on_error == "raise" or getattr(error, "fatal", False):
                        stop = stop or Failure(
                            "not_asked", f"Not asked, after another request failed: {error}", 0
                        )

        workers = [
            asyncio.ensure_future(work()) for _ in range(max(1, min(self.concurrency, len(parts))))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            # A callback that raised, or a cancelled batch: nothing of it goes on behind its back.
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return answers, cause

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        running = asyncio.get_running_loop()
        if self._gate is None or self._gate[0] is not running:  # after a fork, another loop
            self._gate = (running, asyncio.Semaphore(self.concurrency))
        async with self._gate[1]:
            yield

    async def _one(self, part) -> tuple[Any, Exception | None]:
        """The part's result, and the error behind it where it was not answered."""
        ask = {
            "generate": self._generate,
            "score": self._score,
            "hidden_states": self._hidden_states,
        }[part.kind]
        start = time.perf_counter()
        cause: Exception | None = None
        try:
            result = await ask(part)
        except CallError as error:
            cause = error
            result = _RESULTS[part.kind](
                error=Failure(error.kind, str(error), error.attempts), attempts=error.history
            )
        except MissingCapability as error:
            cause = error
            result = _RESULTS[part.kind](error=Failure("unsupported", str(error)))
        except InvalidRequest as error:  # found late, such as a prompt longer than the context
            cause = error
            result = _RESULTS[part.kind](error=Failure("bad_request", str(error)))
        result = dataclasses.replace(
            result,
            model=result.model or self.name,
            latency=result.latency or time.perf_counter() - start,
        )
        if self.transcript is not None:
            self.transcript.write(self, part, result)
        return result, cause


def empty_result(part: Any, failure: Failure, model: str) -> Any:
    """The result of a part that was not answered."""
    return _RESULTS[part.kind](error=failure, model=model)


def merge(pieces: Sequence[Any]) -> Any:
    """One response out of those to parts of a request: samples in order, usage added up."""
    if len(pieces) == 1:
        return pieces[0]
    errors = [piece.error for piece in pieces if piece.error is not None]
    real = [error for error in errors if error.kind != "not_asked"] or errors
    choices = [choice for piece in pieces for choice in piece.choices]
    return dataclasses.replace(
        pieces[0],
        choices=tuple(sorted(choices, key=lambda choice: choice.sample)),
        usage=sum((piece.usage for piece in pieces), Usage()),
        latency=max(piece.latency for piece in pieces),
        error=real[0] if real else None,
        attempts=tuple(attempt for piece in pieces for attempt in piece.attempts),
        cached=all(piece.cached for piece in pieces),
    )
