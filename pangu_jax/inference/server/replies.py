"""What the engine wrote in the JSON shapes of the OpenAI protocol."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from pangu_jax.inference import Completion, TokenLogprob
from pangu_jax.inference.chat_protocol.tokens import Offsets, TokenTexts
from pangu_jax.inference.chat_protocol.tool_parsing import ToolCall, parse_tool_calls
from pangu_jax.inference.server.protocol import Call, Served

# JSON has no minus infinity; the protocol's stand-in for a token that cannot be.
_IMPOSSIBLE = -9999.0


def usage(call: Call, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Tokens of the call; a prompt counts once, however many choices continue it."""
    prompt_tokens = sum(len(ids) for _, ids in call.prompts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def usage_of(call: Call, completions: Sequence[Completion]) -> dict[str, Any]:
    """`usage` of finished completions, in the order of the call's requests."""
    return usage(
        call,
        sum(len(completion.token_ids) for completion in completions),
        sum(completion.cached_tokens for completion in completions[:: call.n]),
    )


def head(call: Call, kind: str) -> dict[str, Any]:
    """What every reply and every chunk begins with."""
    return {"id": call.id, "object": kind, "created": call.created, "model": call.model}


def chat_reply(call: Call, served: Served, completions: Sequence[Completion]) -> dict[str, Any]:
    """An object `chat.completion`."""
    choices = []
    for index, completion in enumerate(completions):
        content, calls = completion.text, []
        if call.tools.active:
            parallel = call.tools.parallel is not False
            content, calls = parse_tool_calls(content, call.tools.names, parallel=parallel)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if not calls and content is None:
            message["content"] = ""
        if calls:
            message["tool_calls"] = [tool_call(item) for item in calls]
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": None
                if call.top_logprobs is None
                else chat_logprobs(completion.logprobs, call.top_logprobs, served.texts),
                "finish_reason": finish_reason(completion.finish_reason, bool(calls)),
            }
        )
    return {
        **head(call, "chat.completion"),
        "choices": choices,
        "usage": usage_of(call, completions),
    }


def completion_reply(
    call: Call, served: Served, completions: Sequence[Completion]
) -> dict[str, Any]:
    """An object `text_completion`."""
    choices = []
    for index, completion in enumerate(completions):
        text, ids = call.prompts[index // call.n]
        logprobs = None
        if call.top_logprobs is not None:
            start = len(text) - served.texts.length(ids) if call.echo else 0
            logprobs = CompletionLogprobs(served.texts, call.top_logprobs, start)
            if call.echo:
                logprobs.add_first(ids[0])
                logprobs.add(completion.prompt_logprobs)
            logprobs.add(completion.logprobs)
        choices.append(
            {
                "index": index,
                "text": text + completion.text if call.echo else completion.text,
                "logprobs": None if logprobs is None else logprobs.take(),
                "finish_reason": completion.finish_reason,
            }
        )
    return {
        **head(call, "text_completion"),
        "choices": choices,
        "usage": usage_of(call, completions),
    }


def finish_reason(reason: str | None, called: bool) -> str | None:
    """The protocol's reason: a turn that ended with calls says so; one cut off stays 'length'."""
    return "tool_calls" if called and reason == "stop" else reason


def tool_call(item: ToolCall) -> dict[str, Any]:
    """A call as it stands in a message."""
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": item.name, "arguments": item.arguments},
    }


def chat_logprobs(
    tokens: Sequence[TokenLogprob], top: int, texts: TokenTexts
) -> dict[str, list[dict[str, Any]]]:
    """`logprobs` of a chat choice: text, bytes and log-probability of tokens and their rivals."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": texts.text_of(token_id),
            "logprob": max(logprob, _IMPOSSIBLE),
            "bytes": list(texts.bytes_of(token_id)),
        }

    return {
        "content": [
            entry(token.token_id, token.logprob)
            | {"top_logprobs": [entry(*other) for other in token.top[:top]]}
            for token in tokens
        ],
        "refusal": None,
    }


class CompletionLogprobs:
    """`logprobs` of a completions choice, collected as tokens come."""

    def __init__(self, texts: TokenTexts, top: int, start: int = 0):
        self._texts, self._top = texts, top
        self._offsets = Offsets(texts, start)
        self._lists: dict[str, list[Any]] = {}
        self._clear()

    def _clear(self) -> None:
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        self._lists = {name: [] for name in names}

    def add_first(self, token_id: int) -> None:
        """A prompt's first token, which nothing predicts."""
        self._add(token_id, None, None)

    def add(self, tokens: Sequence[TokenLogprob]) -> None:
        """Further tokens."""
        for token in tokens:
            top = token.top[: self._top]
            named = {self._texts.text_of(i): max(logprob, _IMPOSSIBLE) for i, logprob in top}
            self._add(token.token_id, max(token.logprob, _IMPOSSIBLE), named)

    def take(self) -> dict[str, list[Any]]:
        """What was added since the last call."""
        taken = self._lists
        self._clear()
        return taken

    def _add(self, token_id, logprob, top) -> None:
        self._lists["tokens"].append(self._texts.text_of(token_id))
        self._lists["token_logprobs"].append(logprob)
        self._lists["top_logprobs"].append(top)
        self._lists["text_offset"].append(self._offsets.next(token_id))
