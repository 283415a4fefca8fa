"""What no engine of a given size can serve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pangu_jax.inference.errors import RequestError
from pangu_jax.inference.request import Request


def check_request(
    request: Request, *, vocab_size: int, context_length: int, adapters: Sequence[str]
) -> None:
    """Refuses a request that can never be served.

    Raises:
      RequestError: an empty prompt, ids beyond the vocabulary, a prompt that fills the context,
        log-probabilities beyond it, an unknown adapter, or a weight that is no finite number.
    """
    prompt = request.prompt_ids
    if not prompt:
        raise RequestError(f"Request {request.id!r} has an empty prompt; give it a token.")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise RequestError(
            f"Request {request.id!r} holds token {max(prompt)} (least {min(prompt)}), but the "
            f"vocabulary is 0 to {vocab_size - 1}: it was made by another tokenizer."
        )
    # A prompt that is only read may fill the context.
    most = context_length - (request.sampling.max_tokens != 0)
    if len(prompt) > most:
        raise RequestError(
            f"Request {request.id!r} has a prompt of {len(prompt)} tokens; the context holds "
            f"{context_length}, so at most {most} fit. Shorten it, or raise "
            "engine.context_length."
        )
    start = request.sampling.prompt_logprobs_from
    if start is not None and start > len(prompt):
        raise RequestError(
            f"Request {request.id!r}: prompt_logprobs_from={start} lies beyond its prompt of "
            f"{len(prompt)} tokens."
        )
    unknown = [name for name, _ in request.adapters if name not in adapters]
    if unknown:
        raise RequestError(
            f"Request {request.id!r} names adapter {unknown[0]!r}; loaded are: "
            f"{', '.join(adapters) or '(none)'}."
        )
    odd = [weight for _, weight in request.adapters if not math.isfinite(weight)]
    if odd:
        raise RequestError(
            f"Request {request.id!r} gives an adapter the weight {odd[0]!r}; a finite number "
            "is needed."
        )
