"""Requests as bodies of the OpenAI protocol, and its answers as results; nothing is sent here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from agents_jax.llm.endpoint_config import EndpointConfig
from agents_jax.llm.errors import CallError
from agents_jax.llm.hashing import sample_seed
from agents_jax.llm.requests import GenerateRequest
from agents_jax.llm.results import Choice, Token, ToolCall, Usage

# What servers write for a probability of zero.
_ZERO_PROBABILITY = -9999.0


def path_of(request: Any) -> str:
    """Which of the protocol's two ways of generating serves the request."""
    return "/completions" if request.messages is None else "/chat/completions"


def body_of(request: GenerateRequest, config: EndpointConfig) -> dict[str, Any]:
    """The body that asks for the request's samples."""
    chat = request.messages is not None
    body: dict[str, Any] = {"model": config.model, "temperature": request.temperature}
    body |= {"messages": list(request.messages)} if chat else {"prompt": request.prompt}
    if request.max_tokens is not None:
        body[config.max_tokens_field if chat else "max_tokens"] = request.max_tokens
    for name, default in (("top_p", 1.0), ("presence_penalty", 0.0), ("frequency_penalty", 0.0)):
        if getattr(request, name) != default:
            body[name] = getattr(request, name)
    penalty = "repeat_penalty" if config.server == "llama.cpp" else "repetition_penalty"
    for name, key, default in (
        ("top_k", "top_k", 0),
        ("min_p", "min_p", 0.0),
        ("repetition_penalty", penalty, 1.0),
    ):
        if getattr(request, name) != default:
            body[key] = getattr(request, name)
    if request.n > 1:
        body["n"] = request.n
    if request.stop:
        body["stop"] = list(request.stop)
    if request.seed is not None:
        body["seed"] = sample_seed(request.seed, request.sample)
    if request.logprobs is not None:
        body |= (
            {"logprobs": True, "top_logprobs": request.logprobs}
            if chat
            else {"logprobs": request.logprobs}
        )
    if request.tools:
        body["tools"] = list(request.tools)
    if request.tool_choice is not None:
        body["tool_choice"] = request.tool_choice
    if request.response_schema is not None:
        schema = {"name": "answer", "schema": request.response_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.regex is not None:
        body |= _regex(request.regex, config.server)
    if request.adapters:
        body["adapters"] = dict(request.adapters)
    if config.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | dict(request.extra)


def _regex(pattern: str, server: str) -> dict[str, Any]:
    if server == "vllm":
        return {"structured_outputs": {"regex": pattern}}
    if server == "pangu":
        return {"guided_regex": pattern}
    return {"regex": pattern}


def bound_of(request: Any, *, completion_tokens: int) -> Usage:
    """An upper bound of what a call uses.

    A token stands for at least one byte; room for the template's own tokens is added per message.
    """
    said = [request.prompt] if request.messages is None else list(request.messages)
    said += list(getattr(request, "tools", ()))
    size = sum(
        len(s.encode("utf-8", "surrogatepass"))
        if isinstance(s, str)
        else len(json.dumps(s, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        for s in said
    )
    return Usage(size + 16 * len(said) + 64, completion_tokens, estimated=True)


def malformed(what: str) -> CallError:
    """The error of an answer that cannot be read; the work behind it was done."""
    return CallError("malformed", f"The endpoint's answer {what}.", billed=True)


def usage_of(answer: Mapping[str, Any], otherwise: Usage) -> Usage:
    """What the endpoint says that it used, or `otherwise` where it does not say."""
    usage = answer.get("usage")
    try:
        details = usage.get("prompt_tokens_details") or {}
        found = Usage(
            int(usage["prompt_tokens"]),
            int(usage.get("completion_tokens") or 0),
            int(details.get("cached_tokens") or 0),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return otherwise
    if min(found.prompt_tokens, found.completion_tokens, found.cached_tokens) < 0:
        return otherwise
    return found


def choices_of(answer: Mapping[str, Any], request: GenerateRequest) -> list[Choice]:
    """The samples of an answer, numbered from `request.sample` on.

    Raises:
      CallError: 'truncated' for no choices, 'malformed' for ones without text.
    """
    entries = answer.get("choices")
    if not isinstance(entries, list):
        raise malformed(f"has no choices; its fields are {sorted(answer)[:8]}")
    if not entries:
        raise CallError("truncated", "The endpoint answered with empty choices.", billed=True)
    try:
        entries = sorted(entries, key=lambda entry: entry.get("index") or 0)
        return [
            _choice(entry, request.sample + number)
            for number, entry in enumerate(entries[: request.n])
        ]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise malformed(f"does not fit the protocol ({error!r})") from error


def _choice(entry: Mapping[str, Any], sample: int) -> Choice:
    message = entry.get("message")
    if message is None:
        text, calls = entry["text"], ()
        logprobs = _completion_logprobs(entry.get("logprobs"))
    else:
        text = message.get("content")
        if isinstance(text, list):  # parts, of which those of type text count
            text = "".join(part.get("text") or "" for part in text)
        calls = tuple(_tool_call(call) for call in message.get("tool_calls") or ())
        logprobs = _chat_logprobs(entry.get("logprobs"))
    if text is not None and not isinstance(text, str):
        raise TypeError(f"content is a {type(text).__name__}")
    reason = entry.get("finish_reason") or ("tool_calls" if calls else "unknown")
    return Choice(text or "", str(reason), calls, logprobs, sample)


def _tool_call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    arguments = function.get("arguments")
    if not isinstance(arguments, str):  # some servers send the object itself
        arguments = "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(function["name"]), arguments, str(call.get("id") or ""))


def logprob(value: Any) -> float:
    """A finite log-probability out of an answer."""
    value = float(value)
    if math.isnan(value) or value == math.inf:
        raise ValueError(f"log-probability {value!r}")
    return max(value, _ZERO_PROBABILITY)


def _chat_logprobs(found: Any) -> tuple[Token, ...]:
    return tuple(
        Token(
            entry["token"],
            logprob(entry["logprob"]),
            tuple((t["token"], logprob(t["logprob"])) for t in entry.get("top_logprobs") or ()),
        )
        for entry in (found or {}).get("content") or ()
    )


def _completion_logprobs(found: Any) -> tuple[Token, ...]:
    if not found:
        return ()
    if found.get("content"):  # llama.cpp uses the chat's form here too
        return _chat_logprobs(found)
    tokens, values = found.get("tokens") or (), found.get("token_logprobs") or ()
    tops = found.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        Token(
            token,
            logprob(value),
            tuple(sorted(((t, logprob(v)) for t, v in (top or {}).items()), key=lambda p: -p[1])),
        )
        for token, value, top in zip(tokens, values, tops, strict=True)
    )
