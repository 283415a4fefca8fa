"""What is asked of an engine and what comes back: plain data; the one array is of hidden states.

A request names its prompt by token ids. Log-probabilities are natural logarithms of the model's own
distribution (temperature 1, before penalties, filters and masks).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from pangu_jax.inference.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled", "error"]
MAX_LOGPROBS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grammar:
    """What the text must match: kind 'json_schema' (a JSON schema as text), 'regex' or 'lark'."""

    kind: Literal["json_schema", "regex", "lark"]
    source: str

    def __post_init__(self):
        if self.kind not in ("json_schema", "regex", "lark"):
            raise RequestError(
                f"grammar kind {self.kind!r} is unknown; allowed: json_schema, regex, lark."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when a completion ends.

    max_tokens: new tokens at most; 0 only reads the prompt. None: what the context leaves.
    temperature: 0 takes the most probable token.
    top_k: keep the k most probable tokens; 0 keeps all. top_p: keep the fewest most probable tokens
      whose mass reaches p. min_p: keep tokens at least this fraction of the most probable one.
      Applied in this order (all at once where several are set), after the temperature.
    repetition_penalty: divides positive and multiplies negative logits of every token that the
      prompt or the completion holds (Keskar et al., arXiv 1909.05858).
    presence_penalty, frequency_penalty: subtracted from logits of tokens of the completion, once
      and once per occurrence (the OpenAI protocol's definition).
    seed: of this request alone: the same request gives the same tokens whatever runs beside it.
    stop: texts that end the completion, and are not part of it. stop_token_ids: the same by id, in
      addition to the model's own end tokens (left out with ignore_eos).
    logprobs: None for none; n >= 0 for the chosen token's and the n most probable ones'.
    prompt_logprobs_from: log-probabilities of the prompt's tokens from this index on (>= 1); None
      for none. This is how continuations are scored.
    grammar: what the completion must match.
    """

    max_tokens: int | None = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs_from: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self):
        def refuse(field, allowed):
            raise RequestError(f"{field}={getattr(self, field)!r} is not allowed; {allowed}.")

        if self.max_tokens is not None and self.max_tokens < 0:
            refuse("max_tokens", "0 or more, or None for what the context leaves")
        if not 0 <= self.temperature < float("inf"):
            refuse("temperature", "0 (most probable token) or a positive number")
        if self.top_k < 0:
            refuse("top_k", "0 (all tokens) or a positive number")
        if not 0 < self.top_p <= 1:
            refuse("top_p", "above 0 and up to 1")
        if not 0 <= self.min_p <= 1:
            refuse("min_p", "from 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            refuse("repetition_penalty", "a positive number; 1 for none")
        for field in ("presence_penalty", "frequency_penalty"):
            if not -float("inf") < getattr(self, field) < float("inf"):
                refuse(field, "a finite number")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            refuse("logprobs", f"None or 0 to {MAX_LOGPROBS}")
        if self.prompt_logprobs_from is not None and self.prompt_logprobs_from < 1:
            refuse("prompt_logprobs_from", "1 or more: the first token has nothing before it")
        if any(not text for text in self.stop):
            refuse("stop", "texts of at least one character")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenStatesAt:
    """Layers whose hidden states at the last token of a prompt are wanted.

    layers: 0 for the embedding, l for the residual stream after block l; negative ones count from
      the end, so that -1 is the stream after the last block.
    normed: whether the stream after the last block passes the final norm, as `transformers` returns
      it.
    """

    layers: tuple[int, ...]
    normed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt. id: free to choose, returned with the completion.

    adapters: weight of each named LoRA adapter for this request; empty for the base model alone.
    hidden: hidden states wanted with the completion; max_tokens=0 gives them alone.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    adapters: tuple[tuple[str, float], ...] = ()
    hidden: HiddenStatesAt | None = None


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability, and the likeliest ones in its place as (id, logprob)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta:
    """News of a running request: what came since the last news.

    text may lag behind token_ids: bytes of a character still incomplete, or what could become a
    stop text, are held back. finish_reason is set in the last one. cached_tokens: of the prompt,
    not computed anew; said once, in any of the request's news.
    """

    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished request.

    text, token_ids: new ones only; a stop text is cut off, the tokens that made it are kept.
    logprobs: one per token, where asked for. prompt_logprobs: from prompt_logprobs_from on.
    stop_text: the stop text that ended it. cached_tokens: of the prompt, not computed anew.
    hidden: float32 (layers, D) at the prompt's last token, where asked for; None too where the
      request ended before its prompt was read. Left out of comparisons.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    stop_text: str | None = None
    error: str | None = None
    timing: dict[str, Any] = dataclasses.field(default_factory=dict)
    hidden: np.ndarray | None = dataclasses.field(default=None, compare=False)
