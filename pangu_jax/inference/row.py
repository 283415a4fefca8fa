"""One running request: its tokens, its pages, and the text that has come of it so far."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from pangu_jax.inference.detokenize import IncrementalText
from pangu_jax.inference.page_pool import page_keys
from pangu_jax.inference.request import Completion, Delta, FinishReason, Request, TokenLogprob
from pangu_jax.inference.sampling import has_penalties


@dataclasses.dataclass(kw_only=True)
class Row:
    """State of a request inside an engine.

    limit: new tokens at most, the context considered. computed: tokens in the cache, the first of
    `tokens`. pages: theirs, in order. published: pages already made known as prefixes.
    cached: prompt tokens that another request had computed. mask: what `grammar` lets come next,
    None where it has not been asked since the last token. hidden: states of the prompt's last token
    (`HiddenStatesAt`), None until it has been read.
    """

    request: Request
    limit: int
    page_size: int
    text: IncrementalText
    grammar: Any = None
    mask: np.ndarray | None = None
    generated: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    pages: list[int] = dataclasses.field(default_factory=list)
    computed: int = 0
    published: int = 0
    cached: int | None = None
    hidden: np.ndarray | None = None
    pieces: list[str] = dataclasses.field(default_factory=list)
    stop_text: str | None = None
    arrived: float = dataclasses.field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None

    def __post_init__(self):
        adapters = sorted((name, weight) for name, weight in self.request.adapters if weight)
        self._salt = repr(adapters).encode() if adapters else b""
        self._keys: list[bytes] = []
        self._keyed = -1

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.request.prompt_ids) + len(self.generated)

    @property
    def decoding(self) -> bool:
        """Whether only the newest token is missing from the cache."""
        return bool(self.generated) and self.length - self.computed == 1

    @property
    def remaining(self) -> int:
        return self.limit - len(self.generated)

    def ends_for_hidden(self, count: int) -> bool:
        """Whether the next `count` tokens end with the one whose hidden states are still wanted.

        A row that gave way after its prompt had been read has them already.
        """
        wanted = self.request.hidden is not None and self.hidden is None
        return wanted and self.computed + count == len(self.request.prompt_ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Tokens start .. stop - 1 of prompt and completion."""
        prompt = self.request.prompt_ids
        size = len(prompt)
        if stop <= size:
            return list(prompt[start:stop])
        return [*prompt[start:], *self.generated[max(start - size, 0) : stop - size]]

    def keys(self) -> list[bytes]:
        """Keys of all full pages of the tokens so far."""
        full = self.length // self.page_size
        if full != self._keyed:
            tokens = self.tokens(0, full * self.page_size)
            self._keys, self._keyed = page_keys(tokens, self.page_size, self._salt), full
        return self._keys

    def reusable(self) -> list[bytes]:
        """Keys of pages that may come from the cache: at least one token is always computed, and
        every token whose successor's log-probability is wanted."""
        last = self.length - 1
        wanted = self.request.sampling.prompt_logprobs_from
        if wanted is not None:
            last = min(last, max(wanted - 1, 0) + len(self.prompt_logprobs))
        return self.keys()[: last // self.page_size]

    def seen(self, vocabulary: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(bool (V,) of the prompt, int32 (V,) counts of the completion), where penalties ask."""
        if not has_penalties(self.request.sampling):
            return None
        prompt = np.zeros(vocabulary, bool)
        prompt[list(self.request.prompt_ids)] = True
        return prompt, np.bincount(self.generated, minlength=vocabulary).astype(np.int32)

    def add(self, token: int, logprob: TokenLogprob | None, ends: bool) -> Delta:
        """Takes a new token in; `ends` where it is an end token. The news, finished or not."""
        now = time.perf_counter()
        self.first_token = self.first_token or now
        self.generated.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        reason: FinishReason | None = None
        if ends:
            reason, piece = "stop", self.text.finish()
        else:
            piece, self.stop_text = self.text.add([token])
            if self.stop_text is not None:
                reason = "stop"
            elif self.grammar is not None and self.grammar.is_finished:
                reason, piece = "stop", piece + self.text.finish()
            elif len(self.generated) >= self.limit:
                reason, piece = "length", piece + self.text.finish()
        self.pieces.append(piece)
        return Delta(
            id=self.request.id, text=piece, token_ids=(token,),
            logprobs=() if logprob is None else (logprob,), finish_reason=reason,
        )  # fmt: skip

    def completion(self, reason: FinishReason, error: str | None = None) -> Completion:
        """The finished request."""
        now = time.perf_counter()
        timing = {"total_s": now - self.arrived}
        if self.started is not None:
            timing["queued_s"] = self.started - self.arrived
        if self.first_token is not None:
            timing["first_token_s"] = self.first_token - self.arrived
        return Completion(
            id=self.request.id, text="".join(self.pieces), token_ids=tuple(self.generated),
            finish_reason=reason, prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self.cached or 0, logprobs=tuple(self.logprobs),
            prompt_logprobs=tuple(self.prompt_logprobs), stop_text=self.stop_text, error=error,
            timing=timing, hidden=self.hidden,
        )  # fmt: skip
