"""A model that runs here, on the JAX engine, behind the interface of all models."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from agents_jax.llm.call_log import Transcript
from agents_jax.llm.capabilities import CAPABILITIES, Capabilities
from agents_jax.llm.errors import CallError, InvalidRequest
from agents_jax.llm.hashing import request_key, sample_seed
from agents_jax.llm.interface import BaseModel
from agents_jax.llm.local_chat import Chat, TokenTexts, read_chat
from agents_jax.llm.requests import GenerateRequest, HiddenStatesRequest, ScoreRequest
from agents_jax.llm.results import (
    Choice,
    ContinuationScore,
    Failure,
    HiddenStates,
    Response,
    Scores,
    Token,
    ToolCall,
    Usage,
)
from agents_jax.llm.tokens import continuation_ids
from pangu_jax.inference import Completion, Grammar, Request, RequestError, SamplingParams
from pangu_jax.weights.tokenizer_import import LoadedTokenizer


class LocalEngine(Protocol):
    """What is needed of an engine; it batches the requests of a call by itself."""

    model_name: str
    context_length: int
    tokenizer: LoadedTokenizer

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Completions in the order of the requests; RequestError for one that cannot be served."""
        ...

    def hidden_states(
        self, prompts: list[list[int]], layers: Sequence[int], positions: Sequence[int]
    ) -> Any:
        """Array [num_prompts, num_layers, num_positions, d_model]."""
        ...


@dataclasses.dataclass
class _Job:
    """A part of a batch: its place, what the engine is asked for it, and what is known of it."""

    number: int
    part: Any
    requests: list[Request] = dataclasses.field(default_factory=list)
    completions: list[Completion | RequestError] = dataclasses.field(default_factory=list)
    chat: Chat | None = None
    methods: tuple[str, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()


class LocalModel(BaseModel):
    """The engine's model.

    A request without a seed gets one from its hash, so that the same request always has the same
    answer, and its samples differ.

    Args:
      engine: used by one thread at a time.
      chunk: parts given to the engine in one call; what is answered is reported after each chunk.
      precision: how weights are held ('float32', 'int8', ...); part of the identity, since it
        changes answers.
    """

    def __init__(
        self,
        engine: LocalEngine,
        *,
        chunk: int = 256,
        precision: str | None = None,
        transcript: Transcript | None = None,
    ):
        if not isinstance(chunk, int) or chunk < 1:
            raise InvalidRequest(f"chunk={chunk!r} is not allowed; an integer >= 1.")
        identity = {"kind": "local", "model": engine.model_name}
        names = set(CAPABILITIES)
        if engine.tokenizer.special.chat_template is None:
            names -= {"chat", "tools"}
        super().__init__(
            engine.model_name,
            Capabilities(frozenset(names), engine.context_length),
            identity=identity | ({} if precision is None else {"precision": precision}),
            transcript=transcript,
        )
        self.engine = engine
        self.chunk = chunk
        self._tokenizer = engine.tokenizer.tokenizer
        self._texts = TokenTexts(engine.tokenizer)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "local-engine")

    def close(self) -> None:
        """Lets the thread of the engine end."""
        self._thread.shutdown(wait=True)

    async def _answer(self, parts, on_error, on_answer):
        answers: list[Any] = [None] * len(parts)
        cause: Exception | None = None
        loop = asyncio.get_running_loop()
        for start in range(0, len(parts), self.chunk):
            numbered = [(n, parts[n][1]) for n in range(start, min(start + self.chunk, len(parts)))]
            if cause is not None and on_error == "raise":
                failure = Failure("not_asked", f"Not asked, after another failed: {cause}", 0)
                for number, part in numbered:
                    answers[number] = _empty(part, error=failure, model=self.name)
                continue
            done = await loop.run_in_executor(self._thread, self._chunk, numbered)
            for (number, part), (answer, error) in zip(numbered, done, strict=True):
                answers[number] = answer
                cause = cause or error
                if self.transcript is not None:
                    self.transcript.write(self, part, answer)
                if error is None and on_answer is not None:
                    on_answer(part, answer)
        return answers, cause

    def _chunk(self, numbered) -> list[tuple[Any, Exception | None]]:
        """Each part's result and its error, on the thread of the engine."""
        start = time.perf_counter()
        found: dict[int, tuple[Any, Exception | None]] = {}
        jobs = []
        for number, part in numbered:
            try:
                jobs.append(self._job(number, part))
            except InvalidRequest as error:
                found[number] = _failed(part, error)
        self._run([(job, i) for job in jobs for i in range(len(job.requests))])
        self._run_hidden([job for job in jobs if isinstance(job.part, HiddenStatesRequest)], found)
        for job in jobs:
            if job.number in found:
                continue
            errors = [c for c in job.completions if isinstance(c, Exception)]
            broken = [
                c for c in job.completions if isinstance(c, Completion) and _broken(job.part, c)
            ]
            if errors:
                found[job.number] = _failed(job.part, errors[0])
            elif broken:
                text = broken[0].error or f"the engine ended it as {broken[0].finish_reason!r}"
                found[job.number] = _failed(job.part, CallError("server", text))
            elif isinstance(job.part, GenerateRequest):
                found[job.number] = self._response(job), None
            else:
                found[job.number] = self._scores(job), None
        seconds = time.perf_counter() - start
        return [
            (dataclasses.replace(answer, latency=seconds, model=self.name), error)
            for answer, error in (found[number] for number, _ in numbered)
        ]

    def _run(self, pending: list[tuple[_Job, int]]) -> None:
        """Completions of the jobs; a request that cannot be served does not spoil the others."""
        if not pending:
            return
        try:
            done: list[Any] = self.engine.generate([job.requests[i] for job, i in pending])
        except RequestError as error:
            if len(pending) == 1:
                done = [error]
            else:  # which one it is, the engine need not say
                middle = len(pending) // 2
                self._run(pending[:middle])
                self._run(pending[middle:])
                return
        for (job, _), completion in zip(pending, done, strict=True):
            job.completions.append(completion)

    def _run_hidden(self, jobs: list[_Job], found) -> None:
        groups: dict[tuple, list[_Job]] = {}
        for job in jobs:
            groups.setdefault((job.part.layers, job.positions), []).append(job)
        for (layers, positions), group in groups.items():
            self._run_hidden_group(group, layers, positions, found)

    def _run_hidden_group(self, group, layers, positions, found) -> None:
        prompts = [list(job.prompt_ids) for job in group]
        try:
            values = np.asarray(self.engine.hidden_states(prompts, layers, positions), np.float32)
        except ValueError as error:
            if len(group) == 1:
                found[group[0].number] = _failed(group[0].part, error)
                return
            middle = len(group) // 2
            self._run_hidden_group(group[:middle], layers, positions, found)
            self._run_hidden_group(group[middle:], layers, positions, found)
            return
        for job, own in zip(group, values, strict=True):
            tokens = tuple(self._texts.text_of(job.prompt_ids[p]) for p in positions)
            answer = HiddenStates(
                values=own,
                positions=positions,
                tokens=tokens,
                usage=Usage(len(job.prompt_ids)),
            )
            found[job.number] = answer, None

    def _job(self, number: int, part) -> _Job:
        job = _Job(number, part)
        if part.messages is not None:
            job.chat = read_chat(self.engine.tokenizer, part)
        text = part.prompt if job.chat is None else job.chat.text
        special = job.chat is None  # a template names its own bos
        if isinstance(part, GenerateRequest):
            ids = self._tokenizer.encode(text, add_special_tokens=special).ids
            job.requests = [self._request(number, part, ids, job.chat)]
        elif isinstance(part, ScoreRequest):
            methods = []
            for index, continuation in enumerate(part.continuations):
                before, after, method = continuation_ids(
                    self._tokenizer, text, continuation, special=special
                )
                methods.append(method)
                sampling = SamplingParams(max_tokens=0, prompt_logprobs_from=len(before))
                job.requests.append(
                    Request(
                        id=f"{number}-{index}",
                        prompt_ids=(*before, *after),
                        sampling=sampling,
                        adapters=part.adapters,
                    )
                )
            job.methods = tuple(methods)
        else:
            self._place(job, text, special)
        return job

    def _request(self, number, part: GenerateRequest, ids, chat: Chat | None) -> Request:
        if part.extra:
            raise InvalidRequest(
                f"extra={sorted(part.extra)} is for endpoints; the local engine reads none of it."
            )
        if part.seed is None:
            seed = int(request_key(self.identity, part.content())[:15], 16) % 2**31
        else:
            seed = sample_seed(part.seed, part.sample)
        grammar = None
        schema = part.response_schema if chat is None else chat.schema
        if schema is not None:
            grammar = Grammar(kind="json_schema", source=json.dumps(schema))
        elif part.regex is not None:
            grammar = Grammar(kind="regex", source=part.regex)
        try:
            sampling = SamplingParams(
                max_tokens=part.max_tokens,
                temperature=part.temperature,
                top_k=part.top_k,
                top_p=part.top_p,
                min_p=part.min_p,
                repetition_penalty=part.repetition_penalty,
                presence_penalty=part.presence_penalty,
                frequency_penalty=part.frequency_penalty,
                seed=seed,
                stop=part.stop,
                logprobs=part.logprobs,
                grammar=grammar,
            )
        except RequestError as error:
            raise InvalidRequest(str(error)) from error
        return Request(
            id=str(number), prompt_ids=tuple(ids), sampling=sampling, adapters=part.adapters
        )

    def _place(self, job: _Job, text: str, special: bool) -> None:
        """Token ids and positions (from the end, so that prompts of a group share them)."""
        part = job.part
        if part.continuation:
            before, after, _ = continuation_ids(
                self._tokenizer, text, part.continuation, special=special
            )
        else:
            before, after = self._tokenizer.encode(text, add_special_tokens=special).ids, []
        job.prompt_ids = (*before, *after)
        length = len(job.prompt_ids)
        if part.positions == "continuation":
            job.positions = tuple(range(-len(after), 0))
            return
        for position in part.positions:
            if not -length <= position < length:
                raise InvalidRequest(
                    f"position {position} is outside of the {length} tokens of the request; "
                    f"allowed: {-length} to {length - 1}."
                )
        job.positions = tuple(p if p < 0 else p - length for p in part.positions)

    def _response(self, job: _Job) -> Response:
        completion = job.completions[0]
        text, calls = completion.text, ()
        if job.chat is not None and job.chat.tools.active:
            content, found = job.chat.parse(text)
            text = content or ""
            calls = tuple(
                ToolCall(call.name, call.arguments, f"call_{job.part.sample}_{index}")
                for index, call in enumerate(found)
            )
        choice = Choice(
            text,
            "tool_calls" if calls else completion.finish_reason,
            calls,
            tuple(self._token(found) for found in completion.logprobs),
            job.part.sample,
        )
        usage = Usage(completion.prompt_tokens, len(completion.token_ids), completion.cached_tokens)
        return Response(choices=(choice,), usage=usage)

    def _token(self, found) -> Token:
        top = tuple((self._texts.text_of(number), value) for number, value in found.top)
        return Token(self._texts.text_of(found.token_id), found.logprob, top)

    def _scores(self, job: _Job) -> Scores:
        found = []
        usage = Usage()
        for text, completion in zip(job.part.continuations, job.completions, strict=True):
            values = tuple(float(token.logprob) for token in completion.prompt_logprobs)
            tokens = tuple(self._texts.text_of(t.token_id) for t in completion.prompt_logprobs)
            found.append(ContinuationScore(text, sum(values), tokens, values))
            usage += Usage(completion.prompt_tokens, 0, completion.cached_tokens)
        method = "separate" if "separate" in job.methods else "joint"
        return Scores(continuations=tuple(found), method=method, usage=usage)


def _broken(part, completion: Completion) -> bool:
    if completion.finish_reason in ("error", "cancelled"):
        return True
    return isinstance(part, ScoreRequest) and not completion.prompt_logprobs


def _empty(part, **facts):
    return {"generate": Response, "score": Scores, "hidden_states": HiddenStates}[part.kind](
        **facts
    )


def _failed(part, error: Exception) -> tuple[Any, Exception]:
    kind = error.kind if isinstance(error, CallError) else "bad_request"
    return _empty(part, error=Failure(kind, str(error))), error
