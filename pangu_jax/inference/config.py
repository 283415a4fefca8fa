"""Sizes of an engine."""

from __future__ import annotations

import dataclasses

from pangu_jax.inference.weights import WEIGHT_TYPES, WeightType

_CACHE_TYPES = ("auto", "float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much runs at once, and in which types.

    weights: type of the weights; see `prepare_weights`.
    cache_dtype: of keys and values; 'auto' is the model's own.
    context_length: tokens of prompt and completion together.
    max_rows: requests that run at once; more wait.
    page_size: tokens per page of the cache. num_pages: pages of the whole cache; 0: enough for
      max_rows requests of full length. With fewer, requests wait, or the youngest one starts anew
      from what it has.
    prefill_tokens: prompt tokens read per dispatch, over all rows; longer prompts are read in
      chunks, and requests that are being answered go on in between.
    decode_steps: tokens per request and dispatch. More means less time between steps; a request
      joins, and text is streamed, only between dispatches.
    prefix_caching: keep the pages of finished prompts for prompts that begin alike.
    waiting_limit: requests that may wait; 0 for any number.
    """

    weights: WeightType = "float32"
    cache_dtype: str = "auto"
    context_length: int = 2048
    max_rows: int = 16
    page_size: int = 64
    num_pages: int = 0
    prefill_tokens: int = 512
    decode_steps: int = 4
    prefix_caching: bool = True
    waiting_limit: int = 0

    def __post_init__(self):
        for name in (
            "context_length", "max_rows", "page_size", "prefill_tokens", "decode_steps",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"engine.{name}={getattr(self, name)} must be at least 1.")
        for name, allowed in (("weights", WEIGHT_TYPES), ("cache_dtype", _CACHE_TYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"engine.{name}={getattr(self, name)!r} is unknown; allowed: "
                    f"{', '.join(allowed)}."
                )
        if self.waiting_limit < 0:
            raise ValueError(f"engine.waiting_limit={self.waiting_limit} must be 0 or more.")
        least = self.pages_per_row + 1
        if self.num_pages and self.num_pages < least:
            raise ValueError(
                f"engine.num_pages={self.num_pages} cannot hold one request of "
                f"context_length={self.context_length}: at least {least} pages of {self.page_size} "
                "tokens are needed (one is for what is thrown away), or 0 for as many as it takes."
            )

    @property
    def pages_per_row(self) -> int:
        """Pages of a request of full length."""
        return -(-self.context_length // self.page_size)

    @property
    def pages(self) -> int:
        """Pages of the pool, page 0 included."""
        return self.num_pages or self.max_rows * self.pages_per_row + 1
