"""What no engine of a given size can serve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pangu_jax.inference.errors import RequestError
from pangu_jax.inference.request import Request


def check_request(
    request: Request, *, vocab_size: int, context_length: int, num_layers: int,
    adapters: Sequence[str],
) -> None:  # fmt: skip
    """Refuses a request that can never be served.

    Raises:
      RequestError: an empty prompt, ids beyond the vocabulary, a prompt that fills the context,
        log-probabilities beyond it, hidden states of a layer that is not there, an unknown adapter,
        or a weight that is no finite number.
    """
    name = f"Request {request.id!r}"
    prompt = request.prompt_ids
    if not prompt:
        raise RequestError(f"{name} has an empty prompt; give it a token.")
    check_tokens(name, prompt, vocab_size)
    # A prompt that is only read may fill the context.
    most = context_length - (request.sampling.max_tokens != 0)
    if len(prompt) > most:
        raise RequestError(
            f"{name} has a prompt of {len(prompt)} tokens; the context holds {context_length}, so "
            f"at most {most} fit. Shorten it, or raise engine.context_length."
        )
    start = request.sampling.prompt_logprobs_from
    if start is not None and start > len(prompt):
        raise RequestError(
            f"{name}: prompt_logprobs_from={start} lies beyond its prompt of {len(prompt)} tokens."
        )
    if request.hidden is not None:
        layer_numbers(request.hidden.layers, num_layers, name)
    check_adapters(name, request.adapters, adapters)


def check_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Refuses ids beyond the vocabulary; `name` says whose they are.

    Raises:
      RequestError: names the largest and the least id.
    """
    if len(tokens) and (min(tokens) < 0 or max(tokens) >= vocab_size):
        raise RequestError(
            f"{name} holds token {max(tokens)} (least {min(tokens)}), but the vocabulary is 0 to "
            f"{vocab_size - 1}: it was made by another tokenizer."
        )


def check_adapters(name: str, asked: Sequence[tuple[str, float]], loaded: Sequence[str]) -> None:
    """Refuses adapters that are not loaded, and weights that are no finite numbers.

    Raises:
      RequestError: names the adapter or the weight.
    """
    unknown = [adapter for adapter, _ in asked if adapter not in loaded]
    if unknown:
        raise RequestError(
            f"{name} names adapter {unknown[0]!r}; loaded are: {', '.join(loaded) or '(none)'}."
        )
    odd = [weight for _, weight in asked if not math.isfinite(weight)]
    if odd:
        raise RequestError(
            f"{name} gives an adapter the weight {odd[0]!r}; a finite number is needed."
        )


def layer_numbers(layers: Sequence[int], num_layers: int, name: str = "") -> tuple[int, ...]:
    """Layers counted from the embedding: 0 to num_layers, negative ones from the end.

    Args:
      name: whose they are, for the error; none where it is plain.

    Raises:
      RequestError: no layer, or one that is not there.
    """
    found = tuple(layer if layer >= 0 else num_layers + 1 + layer for layer in layers)
    if not found or not all(0 <= layer <= num_layers for layer in found):
        raise RequestError(
            f"{name + ': ' if name else ''}layers={list(layers)} must name at least one of 0 to "
            f"{num_layers}."
        )
    return found
