"""A streamed reply: news of the engine in, chunks of the OpenAI protocol out."""

from __future__ import annotations

from typing import Any, Protocol

from pangu_jax.inference import Delta, TokenLogprob
from pangu_jax.inference.chat_protocol.tool_parsing import ToolCallReader
from pangu_jax.inference.server.protocol import Call, Served
from pangu_jax.inference.server.replies import (
    CompletionLogprobs,
    chat_logprobs,
    finish_reason,
    head,
    tool_call,
    usage,
)


class Chunks(Protocol):
    """Turns news of choices into chunks."""

    def take(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """Chunks that the news gives, none where there is nothing to say yet."""
        ...

    def last(self) -> list[dict[str, Any]]:
        """Chunks after all choices have finished."""
        ...


class _Counted:
    """What both kinds of reply share: the head of chunks, and usage."""

    kind = ""

    def __init__(self, call: Call):
        self._call = call
        self._tokens = self._cached = 0

    def _count(self, index: int, delta: Delta) -> None:
        self._tokens += len(delta.token_ids)
        if index % self._call.n == 0:
            self._cached += delta.cached_tokens

    def _chunk(self, choices: list[dict[str, Any]], used: Any = None) -> dict[str, Any]:
        chunk = {**head(self._call, self.kind), "choices": choices}
        return {**chunk, "usage": used} if self._call.include_usage else chunk

    def last(self) -> list[dict[str, Any]]:
        """The chunk with usage, where it was asked for."""
        if not self._call.include_usage:
            return []
        return [self._chunk([], usage(self._call, self._tokens, self._cached))]


class ChatChunks(_Counted):
    """Chunks `chat.completion.chunk`; a tool call comes whole, in one chunk."""

    kind = "chat.completion.chunk"

    def __init__(self, call: Call, served: Served):
        super().__init__(call)
        self._choices = [_ChatChoice(call, served) for _ in call.requests]

    def take(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """Chunks that the news gives."""
        self._count(index, delta)
        return [
            self._chunk([{"index": index, **parts}]) for parts in self._choices[index].take(delta)
        ]


class _ChatChoice:
    def __init__(self, call: Call, served: Served):
        self._call, self._texts = call, served.texts
        self._reader = None
        if call.tools.active:
            parallel = call.tools.parallel is not False
            self._reader = ToolCallReader(call.tools.names, parallel=parallel)
        self._logprobs: list[TokenLogprob] = []
        self._started = False
        self._calls = 0

    def take(self, delta: Delta) -> list[dict[str, Any]]:
        parts = []
        if not self._started:
            self._started = True
            parts.append(self._part({"role": "assistant", "content": ""}))
        self._logprobs += delta.logprobs
        items: list[Any] = [delta.text] if delta.text else []
        if self._reader is not None:
            items = self._reader.feed(delta.text)
            if delta.finish_reason is not None:
                items += self._reader.finish()
        for item in items:
            if isinstance(item, str):
                parts.append(self._part({"content": item}, logprobs=True))
            else:
                written = {"index": self._calls, **tool_call(item)}
                parts.append(self._part({"tool_calls": [written]}, logprobs=True))
                self._calls += 1
        if delta.finish_reason is not None:
            reason = finish_reason(delta.finish_reason, self._calls > 0)
            parts.append(self._part({}, logprobs=True, reason=reason))
        elif self._reader is None and self._logprobs:
            parts.append(self._part({"content": ""}, logprobs=True))  # part of a character
        return parts

    def _part(self, delta, *, logprobs=False, reason=None) -> dict[str, Any]:
        shown = None
        if logprobs and self._logprobs and self._call.top_logprobs is not None:
            shown = chat_logprobs(self._logprobs, self._call.top_logprobs, self._texts)
            self._logprobs = []
        return {"delta": delta, "logprobs": shown, "finish_reason": reason}


class CompletionChunks(_Counted):
    """Chunks `text_completion`; with echo the first one of a choice holds the prompt."""

    kind = "text_completion"

    def __init__(self, call: Call, served: Served):
        super().__init__(call)
        self._logprobs = None
        if call.top_logprobs is not None:
            top = call.top_logprobs
            self._logprobs = [CompletionLogprobs(served.texts, top) for _ in call.requests]
        self._echoes = set(range(len(call.requests))) if call.echo else set()

    def take(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """Chunks that the news gives."""
        self._count(index, delta)
        text, shown = delta.text, None
        if index in self._echoes:
            self._echoes.remove(index)
            text = self._call.prompts[index // self._call.n][0] + text
        if self._logprobs is not None and delta.logprobs:
            self._logprobs[index].add(delta.logprobs)
            shown = self._logprobs[index].take()
        if not text and shown is None and delta.finish_reason is None:
            return []
        choice = {
            "index": index,
            "text": text,
            "logprobs": shown,
            "finish_reason": delta.finish_reason,
        }
        return [self._chunk([choice])]
