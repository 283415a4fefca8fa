"""Requests of the interface as requests to the local engine, and its completions as results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agents_jax.llm.errors import InvalidRequest
from agents_jax.llm.hashing import request_key, sample_seed
from agents_jax.llm.local_chat import Chat, TokenTexts, read_chat
from agents_jax.llm.requests import GenerateRequest, HiddenStatesRequest, ScoreRequest
from agents_jax.llm.results import (
    Choice,
    ContinuationScore,
    Response,
    Scores,
    Token,
    ToolCall,
    Usage,
)
from agents_jax.llm.tokens import continuation_ids
from pangu_jax.inference import Completion, Grammar, Request, RequestError, SamplingParams

if TYPE_CHECKING:
    from pangu_jax.weights.tokenizer_import import LoadedTokenizer


@dataclasses.dataclass
class Job:
    """A part of a batch: what the engine is asked for it, and what came back.

    number: its place in the batch. methods: how continuations were tokenised. prompt_ids,
    positions: for hidden states; positions are negative, so that texts of any length share them.
    """

    number: int
    part: Any
    requests: list[Request] = dataclasses.field(default_factory=list)
    completions: dict[str, Completion] = dataclasses.field(default_factory=dict)
    chat: Chat | None = None
    methods: tuple[str, ...] = ()
    prompt_ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()

    @property
    def done(self) -> bool:
        """Whether all that was asked came back."""
        return len(self.completions) == len(self.requests)

    @property
    def error(self) -> str | None:
        """Why the engine did not answer; None where it did."""
        for request in self.requests:
            completion = self.completions[request.id]
            if completion.finish_reason in ("error", "cancelled"):
                return completion.error or f"The engine ended it as {completion.finish_reason!r}."
        return None


class Translator:
    """Makes jobs and results.

    Args:
      loaded: the model's tokenizer. identity: the model's, for seeds of requests without one.
    """

    def __init__(self, loaded: LoadedTokenizer, identity: Mapping[str, Any]):
        self._loaded = loaded
        self._tokenizer = loaded.tokenizer
        self._identity = identity
        self.texts = TokenTexts(loaded)

    def job(self, number: int, part: Any, prefix: str) -> Job:
        """The job of a part; ids of its requests begin with `prefix`.

        Raises:
          InvalidRequest: what the tokenizer, the template or the engine's types refuse.
        """
        job = Job(number, part)
        if part.messages is not None:
            job.chat = read_chat(self._loaded, part)
        text = part.prompt if job.chat is None else job.chat.text
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"character {error.start} of the prompt is half a surrogate pair, which is not "
                "text."
            ) from error
        special = job.chat is None  # a template names its own bos
        name = f"{prefix}-{number}"
        if isinstance(part, GenerateRequest):
            ids = self._tokenizer.encode(text, add_special_tokens=special).ids
            job.requests = [self._generate(name, part, ids, job.chat)]
        elif isinstance(part, ScoreRequest):
            self._score(job, name, text, special)
        else:
            self._place(job, text, special)
        return job

    def _generate(self, name, part: GenerateRequest, ids, chat: Chat | None) -> Request:
        if part.extra:
            raise InvalidRequest(
                f"extra={sorted(part.extra)} is for endpoints; the local engine reads none of it."
            )
        if part.seed is None:
            seed = int(request_key(self._identity, part.content())[:15], 16) % 2**31
        else:
            seed = sample_seed(part.seed, part.sample) % 2**31  # what a random key takes
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
        return Request(id=name, prompt_ids=tuple(ids), sampling=sampling, adapters=part.adapters)

    def _score(self, job: Job, name: str, text: str, special: bool) -> None:
        methods = []
        for index, continuation in enumerate(job.part.continuations):
            before, after, method = continuation_ids(
                self._tokenizer, text, continuation, special=special
            )
            methods.append(method)
            job.requests.append(
                Request(
                    id=f"{name}-{index}",
                    prompt_ids=(*before, *after),
                    sampling=SamplingParams(max_tokens=0, prompt_logprobs_from=len(before)),
                    adapters=job.part.adapters,
                )
            )
        job.methods = tuple(methods)

    def _place(self, job: Job, text: str, special: bool) -> None:
        part: HiddenStatesRequest = job.part
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

    def result(self, job: Job) -> Response | Scores:
        """The result of a job that the engine has answered."""
        if isinstance(job.part, GenerateRequest):
            return self._response(job)
        found, usage = [], Usage()
        for text, request in zip(job.part.continuations, job.requests, strict=True):
            completion = job.completions[request.id]
            values = tuple(float(token.logprob) for token in completion.prompt_logprobs)
            tokens = tuple(self.texts.text_of(t.token_id) for t in completion.prompt_logprobs)
            found.append(ContinuationScore(text, sum(values), tokens, values))
            usage += Usage(completion.prompt_tokens, 0, completion.cached_tokens)
        method = "separate" if "separate" in job.methods else "joint"
        return Scores(continuations=tuple(found), method=method, usage=usage)

    def _response(self, job: Job) -> Response:
        completion = job.completions[job.requests[0].id]
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
        top = tuple((self.texts.text_of(number), float(value)) for number, value in found.top)
        return Token(self.texts.text_of(found.token_id), float(found.logprob), top)
