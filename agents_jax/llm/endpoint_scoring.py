"""Log-probabilities of continuations from endpoints.

'echo': /v1/completions repeats the prompt with the log-probability of each token (vLLM, SGLang, our
own server). 'top_logprobs': the likeliest first tokens of an answer, which serves choices of one
token. Which one an endpoint has is found out once, with a prompt of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agents_jax.llm.capabilities import who_has
from agents_jax.llm.errors import CallError, InvalidRequest, MissingCapability
from agents_jax.llm.protocol import bound_of, choices_of, logprob, malformed
from agents_jax.llm.requests import GenerateRequest, ScoreRequest
from agents_jax.llm.results import Attempt, ContinuationScore, Scores, Usage

if TYPE_CHECKING:
    from agents_jax.llm.endpoint import EndpointModel

_PROBE = "The sky is blue"
_SPECIAL = 2  # tokens such as bos that may stand before the text
_TOP = {"/chat/completions": 20, "/completions": 5}  # most that the OpenAI protocol gives


@dataclasses.dataclass
class State:
    """What was found out about an endpoint. echo: None until it was tried.

    generated: tokens that an echo must ask for; some servers refuse none.
    """

    echo: bool | None = None
    generated: int = 0
    why: str = ""
    lock: asyncio.Lock | None = None


@dataclasses.dataclass
class _Spent:
    """What the calls behind one request used."""

    usage: Usage = Usage()
    attempts: tuple[Attempt, ...] = ()

    def add(self, usage, attempts):
        self.usage, self.attempts = self.usage + usage, self.attempts + attempts


async def score(model: EndpointModel, part: ScoreRequest) -> Scores:
    """Scores of the request's continuations.

    Raises:
      MissingCapability: the endpoint has neither way. InvalidRequest: a continuation that the
        endpoint's way cannot serve. CallError: a call was not answered.
    """
    spent = _Spent()
    if model.config.scoring != "top_logprobs" and part.messages is None:
        await _find_out(model, part, spent)
        if model.scoring.echo:
            return await _by_echo(model, part, spent)
        if model.config.scoring == "echo":
            raise _missing(model, model.scoring.why)
    elif model.config.scoring == "echo":
        raise _missing(
            model, "an echo needs a plain prompt, and this request is a chat; render it first"
        )
    return await _by_top_logprobs(model, part, spent)


def _missing(model, why) -> MissingCapability:
    return MissingCapability(model.name, {"score"}, who_has({"score"}), why)


async def _find_out(model: EndpointModel, part: ScoreRequest, spent: _Spent) -> None:
    """Whether the endpoint echoes; asked once, with a prompt whose answer is known."""
    state = model.scoring
    state.lock = state.lock or asyncio.Lock()
    async with state.lock:
        if state.echo is not None:
            return
        probe = ScoreRequest(prompt=_PROBE, continuations=(" .",), tag=part.tag)
        for state.generated in (0, 1):
            try:
                tokens, _ = await _echo(model, _PROBE, probe, spent)
            except CallError as error:
                if error.kind not in ("bad_request", "not_found", "malformed"):
                    raise
                state.why = f"it does not echo prompts: {error}"
                continue
            if _spans(tokens, _PROBE) is not None:
                state.echo = True
                return
            state.why = "it ignores echo=true of /v1/completions"
        state.echo = False


async def _echo(
    model: EndpointModel, text: str, part: ScoreRequest, spent: _Spent
) -> tuple[list[str], list[float | None]]:
    """Tokens of a text and their log-probabilities, as the endpoint cuts it."""
    generated = model.scoring.generated
    body: dict[str, Any] = {
        "model": model.config.model,
        "prompt": text,
        "max_tokens": generated,
        "echo": True,
        "logprobs": 1,
        "temperature": 0.0,
    }
    if part.adapters:
        body["adapters"] = dict(part.adapters)
    bound = bound_of(GenerateRequest(prompt=text), completion_tokens=generated)
    answer, usage, attempts = await model.call("/completions", body, bound, part)
    spent.add(usage, attempts)
    try:
        found = answer["choices"][0].get("logprobs") or {}
        tokens, values = list(found.get("tokens") or ()), list(found.get("token_logprobs") or ())
        values = [None if value is None else logprob(value) for value in values]
        if len(tokens) != len(values) or not all(isinstance(token, str) for token in tokens):
            raise ValueError(f"{len(tokens)} tokens with {len(values)} log-probabilities")
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise malformed(f"to an echo does not fit the protocol ({error!r})") from error
    return tokens, values


def _spans(tokens: Sequence[str], text: str) -> tuple[int, list[int]] | None:
    """Index of the first token of `text`, and where each token from there on starts in it.

    None where the tokens' texts do not add up to it: parts of characters, or no echo.
    """
    for first in range(min(_SPECIAL, len(tokens)) + 1):
        starts, joined = [], ""
        for token in tokens[first:]:
            if len(joined) >= len(text):
                break
            starts.append(len(joined))
            joined += token
        if joined == text:
            return first, starts
    return None


async def _by_echo(model: EndpointModel, part: ScoreRequest, spent: _Spent) -> Scores:
    if not part.prompt:
        raise InvalidRequest("prompt is empty; a continuation needs a token before it.")
    alone: list[str] | None = None
    found = []
    for text in part.continuations:
        tokens, values = await _echo(model, part.prompt + text, part, spent)
        spans = _spans(tokens, part.prompt + text)
        if spans is not None:
            first, starts = spans
            fits = len(part.prompt) in starts
            begin = first + (starts.index(len(part.prompt)) if fits else 0)
            end = first + len(starts)
        else:
            # Texts of tokens do not add up (parts of characters): compare with the prompt's own.
            if alone is None:
                alone, _ = await _echo(model, part.prompt, part, spent)
                alone = alone[: len(alone) - model.scoring.generated]
            begin, end = len(alone), len(tokens) - model.scoring.generated
            fits = tokens[:begin] == alone
        if not fits or begin >= end:
            raise InvalidRequest(
                f"continuation {text!r} does not begin at a token of this model: its tokenizer "
                "joins it with the end of the prompt. Let the space between them begin the "
                "continuation, not end the prompt."
            )
        if any(value is None for value in values[begin:end]):
            raise malformed(f"has no log-probability for the tokens of {text!r}")
        own = tuple(values[begin:end])
        found.append(ContinuationScore(text, sum(own), tuple(tokens[begin:end]), own))
    return Scores(
        continuations=tuple(found), method="echo", usage=spent.usage, attempts=spent.attempts
    )


async def _by_top_logprobs(model: EndpointModel, part: ScoreRequest, spent: _Spent) -> Scores:
    chat = part.messages is not None
    path = "/chat/completions" if chat else "/completions"
    count = _TOP[path]
    # Temperature 1, so that servers which report what they sample from report the model's own.
    body: dict[str, Any] = {"model": model.config.model, "temperature": 1.0}
    body |= {"messages": list(part.messages)} if chat else {"prompt": part.prompt}
    body[model.config.max_tokens_field if chat else "max_tokens"] = 1
    body |= {"logprobs": True, "top_logprobs": count} if chat else {"logprobs": count}
    if part.adapters:
        body["adapters"] = dict(part.adapters)
    answer, usage, attempts = await model.call(
        path, body, bound_of(part, completion_tokens=1), part
    )
    spent.add(usage, attempts)
    asked = GenerateRequest(messages=part.messages, prompt=part.prompt, max_tokens=1)
    tokens = choices_of(answer, asked)[0].logprobs
    if not tokens or not tokens[0].top:
        reason = model.scoring.why or "chats cannot be echoed"
        why = f"{reason}; and it answers without the likeliest tokens"
        raise _missing(model, why)
    top = dict(tokens[0].top) | {tokens[0].text: tokens[0].logprob}
    floor = min(value for _, value in tokens[0].top)
    return Scores(
        continuations=tuple(_choice_score(model, text, top, floor) for text in part.continuations),
        method="top_logprobs",
        usage=spent.usage,
        attempts=spent.attempts,
    )


def _choice_score(model, text, top, floor) -> ContinuationScore:
    if text in top:
        return ContinuationScore(text, top[text], (text,), (top[text],))
    pieces = [token for token in top if token and text.startswith(token)]
    if model.config.score_bound and not pieces:
        return ContinuationScore(text, floor, (text,), (floor,), bound=True)
    begins = f" ({max(pieces, key=len)!r} is, so it may be several tokens)" if pieces else ""
    raise InvalidRequest(
        f"continuation {text!r} is not among the {len(top)} likeliest first tokens that the "
        f"endpoint of {model.name!r} tells{begins}. This endpoint scores only choices of one "
        "token; shorten it, set score_bound=True to take the lowest one told as a bound, or use "
        "an endpoint that echoes prompts."
    )
