"""What deciding costs per query, in milliseconds: prompt, first token, arithmetic of the probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.requests import GenerateRequest, HiddenStatesRequest
from agents_jax.tools.meco.collect import Observations
from agents_jax.tools.meco.examples import Example
from agents_jax.tools.meco.prompts import messages
from agents_jax.tools.meco.reading import Reader


def measure(
    model: LanguageModel, examples: Sequence[Example], reader: Reader, observed: Observations
) -> dict[str, Any]:
    """Medians over queries, asked one at a time, each once beforehand so that nothing is compiled.

    Returns the number of queries and milliseconds, with the interface: 'first_token' (prompt read
    and one token made), 'first_token_cached' (again, as far as the model keeps prompts),
    'hidden_state' (one layer at the answer, nothing of the prompt kept), 'hidden_state_cached'
    (right after the first token of the same prompt, as `Probe.decide` asks), 'probe' (subtraction,
    dot product and threshold for one layer).
    """
    chats = [messages(e) for e in examples]
    column = len(observed.layers) - 1
    direction, center = reader.directions[column], reader.centers[column]
    states = observed.first_token[: len(chats), column]

    def first(chat):
        request = GenerateRequest(messages=chat, max_tokens=1, logprobs=20)
        return lambda: model.generate([request])

    def hidden(chat):
        request = HiddenStatesRequest(
            messages=chat, continuation="Yes", layers=(-2,), positions=(-1,)
        )
        return lambda: model.hidden_states([request])

    def dot(state):
        return lambda: float((state - center) @ direction) > 0.0

    def timed(number):
        """All times with chats that are asked nowhere else."""
        reads = [first(_varied(chat, number)) for chat in chats]
        looks = [hidden(_varied(chat, number)) for chat in chats]
        unread = [hidden(_varied(chat, number + 1)) for chat in chats]
        return {
            "first_token_ms": _median(reads),
            "first_token_cached_ms": _median(reads, before=reads),
            "hidden_state_ms": _median(unread),
            "hidden_state_cached_ms": _median(looks, before=reads),
        }

    timed(0)  # compiles what these lengths need
    return {"queries": len(chats), **timed(2), "probe_ms": _median([dot(s) for s in states])}


def _varied(chat, number):
    """The chat as no other number begins it, and as long: no page of another one serves it."""
    first, *rest = chat
    return ({**first, "content": f"Case {number}. {first['content']}"}, *rest)


def _median(calls: Sequence[Callable], before: Sequence[Callable] | None = None) -> float:
    """Milliseconds; what stands in `before` is called ahead of each call and not counted."""
    times = []
    for index, call in enumerate(calls):
        if before is not None:
            before[index]()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))
