"""A model that runs here, on the JAX engine, behind the interface of all models."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agents_jax.llm.call_log import Transcript
from agents_jax.llm.capabilities import CAPABILITIES, Capabilities
from agents_jax.llm.errors import CallError, InvalidRequest
from agents_jax.llm.interface import BaseModel, empty_result
from agents_jax.llm.local_jobs import Job, Translator
from agents_jax.llm.requests import HiddenStatesRequest
from agents_jax.llm.results import Failure, HiddenStates, Usage
from pangu_jax.inference import Completion, Request, RequestError

if TYPE_CHECKING:
    from pangu_jax.weights.tokenizer_import import LoadedTokenizer

_HIDDEN_TEXTS = 64  # texts whose hidden states are asked for in one call


class LocalEngine(Protocol):
    """What is needed of an engine; `pangu_jax.inference.engine.Engine` has it."""

    model_name: str
    context_length: int
    tokenizer: LoadedTokenizer

    def completions(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Completions as they finish; one with an error for a request that cannot be served."""
        ...

    def cancel(self, request_id: str) -> Any:
        """Ends a request; None where it is not here (any more)."""
        ...

    def take(self, request_id: str) -> Completion:
        """The completion of a finished or cancelled request."""
        ...

    def hidden_states(
        self,
        prompts: Sequence[Sequence[int]],
        layers: Sequence[int],
        positions: Sequence[int],
        *,
        normed: bool,
        adapters: Sequence[tuple[str, float]],
    ) -> np.ndarray:
        """Float32 [num_texts, num_layers, num_positions, d_model]; RequestError."""
        ...


class LocalModel(BaseModel):
    """The engine's model.

    A request without a seed gets one from its hash, so that the same request always has the same
    answer, and its samples differ. All parts of a batch go to the engine at once, which batches
    them; each answer is told of when it is finished. With on_error='raise', the first failure
    cancels what is running.

    Args:
      engine: used by one thread at a time, which this model owns from now on.
      precision: how weights are held; a part of the identity, since it changes answers. None: as
        the engine's configuration says.
    """

    def __init__(
        self,
        engine: LocalEngine,
        *,
        precision: str | None = None,
        transcript: Transcript | None = None,
    ):
        precision = precision or getattr(getattr(engine, "config", None), "weights", None)
        identity = {"kind": "local", "model": engine.model_name}
        names = set(CAPABILITIES)
        if engine.tokenizer.special.chat_template is None:
            names -= {"chat", "tools"}
        if not getattr(engine, "adapter_names", True):
            names -= {"adapters"}
        super().__init__(
            engine.model_name,
            Capabilities(frozenset(names), engine.context_length),
            identity=identity | ({} if precision is None else {"weights": precision}),
            transcript=transcript,
        )
        self.engine = engine
        self._translator = Translator(engine.tokenizer, self.identity)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "local-engine")

    def close(self) -> None:
        """Waits for the thread of the engine to end."""
        self._thread.shutdown(wait=True)
        super().close()

    async def _answer(self, parts, on_error, on_answer):
        running = asyncio.get_running_loop()
        batch = _Batch(self, parts, on_error == "raise", on_answer, running)
        work = running.run_in_executor(self._thread, batch.run)
        try:
            await work
        except asyncio.CancelledError:
            batch.stop.set()
            raise
        return batch.answers, batch.cause


class _Batch:
    """One batch on the thread of the engine.

    stop: set where nobody waits for it any more, or where its first failure ends it.
    """

    def __init__(self, model, parts, stops_at_failure, on_answer, loop):
        self._model, self._engine = model, model.engine
        self._translator = model._translator
        self._parts = [part for _, part in parts]
        self._stops, self._on_answer, self._loop = stops_at_failure, on_answer, loop
        self._start = time.perf_counter()
        self.stop = threading.Event()
        self.answers: list[Any] = [None] * len(parts)
        self.cause: Exception | None = None

    def run(self) -> None:
        """Fills `answers`; what was not reached has the failure 'not_asked'."""
        prefix = uuid.uuid4().hex[:12]
        jobs = []
        for number, part in enumerate(self._parts):
            try:
                jobs.append(self._translator.job(number, part, prefix))
            except InvalidRequest as error:
                self._failed(number, error)
        # All are looked at before the first is run, so that a mistake is told of at once.
        if not self.stop.is_set():
            self._complete([job for job in jobs if job.requests])
            self._hide([job for job in jobs if isinstance(job.part, HiddenStatesRequest)])
        failure = Failure("not_asked", f"Not asked, after another request failed: {self.cause}", 0)
        for number, part in enumerate(self._parts):
            if self.answers[number] is None:
                self.answers[number] = empty_result(part, failure, self._model.name)

    def _complete(self, jobs: list[Job]) -> None:
        owners = {request.id: job for job in jobs for request in job.requests}
        outstanding = dict.fromkeys(owners)
        if not owners:
            return
        completions = self._engine.completions([r for job in jobs for r in job.requests])
        try:
            for completion in completions:
                outstanding.pop(completion.id)
                job = owners[completion.id]
                job.completions[completion.id] = completion
                if job.done and job.error is not None:
                    kind = "server" if completion.finish_reason == "cancelled" else "bad_request"
                    self._failed(job.number, CallError(kind, job.error))
                elif job.done:
                    self._answered(job.number, self._translator.result(job))
                if self.stop.is_set():
                    return
        finally:
            completions.close()
            for name in outstanding:  # the engine goes on with other batches
                if self._engine.cancel(name) is not None:
                    self._engine.take(name)

    def _hide(self, jobs: list[Job]) -> None:
        groups: dict[tuple, list[Job]] = {}
        for job in jobs:
            part = job.part
            key = (part.layers, job.positions, part.normed, part.adapters)
            groups.setdefault(key, []).append(job)
        for key, group in groups.items():
            for start in range(0, len(group), _HIDDEN_TEXTS):
                self._hide_group(group[start : start + _HIDDEN_TEXTS], *key)

    def _hide_group(self, group, layers, positions, normed, adapters) -> None:
        if self.stop.is_set():
            return
        prompts = [list(job.prompt_ids) for job in group]
        try:
            values = self._engine.hidden_states(
                prompts, layers, positions, normed=normed, adapters=adapters
            )
        except RequestError as error:
            if len(group) == 1:
                self._failed(group[0].number, InvalidRequest(str(error)))
                return
            middle = len(group) // 2  # which text it is, the engine need not say
            self._hide_group(group[:middle], layers, positions, normed, adapters)
            self._hide_group(group[middle:], layers, positions, normed, adapters)
            return
        for job, own in zip(group, np.asarray(values, np.float32), strict=True):
            texts = (self._translator.texts.text_of(job.prompt_ids[p]) for p in positions)
            usage = Usage(len(job.prompt_ids))
            self._answered(
                job.number,
                HiddenStates(values=own, positions=positions, tokens=tuple(texts), usage=usage),
            )

    def _answered(self, number: int, answer: Any) -> None:
        self._tell(number, answer, answered=True)

    def _failed(self, number: int, error: Exception) -> None:
        kind = error.kind if isinstance(error, CallError) else "bad_request"
        failure = Failure(kind, str(error))
        self.cause = self.cause or error
        self._tell(number, empty_result(self._parts[number], failure, ""), answered=False)
        if self._stops:
            self.stop.set()

    def _tell(self, number: int, answer: Any, *, answered: bool) -> None:
        """Keeps the answer and tells of it, on the loop, where recordings are written."""
        seconds = time.perf_counter() - self._start
        answer = dataclasses.replace(answer, latency=seconds, model=self._model.name)
        self.answers[number] = answer
        part = self._parts[number]

        async def tell():
            if self._model.transcript is not None:
                self._model.transcript.write(self._model, part, answer)
            if answered and self._on_answer is not None:
                self._on_answer(part, answer)

        if not self.stop.is_set():
            asyncio.run_coroutine_threadsafe(tell(), self._loop).result()
