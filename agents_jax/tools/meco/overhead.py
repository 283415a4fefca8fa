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

    Returns milliseconds: 'first_token' (prompt read and one token made, with the interface), the
    same again with the prompt's pages cached, 'hidden_state' (prompt and answer read once more, one
    layer), 'probe' (subtraction, dot product and threshold for one layer), and numbers of queries.
    """
    chats = [messages(e) for e in examples]
    column = len(observed.layers) - 1
    direction, center = reader.directions[column], reader.centers[column]
    states = observed.first_token[: len(chats), column]

    def first(chat):
        request = GenerateRequest(messages=chat, max_tokens=1, logprobs=20)
        return lambda: model.generate([request])

    def hidden(chat, suffix=""):
        request = HiddenStatesRequest(
            messages=chat, continuation="Yes" + suffix, layers=(-2,), positions=(-1,)
        )
        return lambda: model.hidden_states([request])

    def dot(state):
        return lambda: float((state - center) @ direction) > 0.0

    fresh = [_varied(chat) for chat in chats]
    for chat in chats:  # compiles what these lengths need
        first(chat)(), hidden(chat)()
    return {
        "queries": len(chats),
        "first_token_ms": _median([first(chat) for chat in fresh]),
        "first_token_cached_ms": _median([first(chat) for chat in fresh]),
        "hidden_state_ms": _median([hidden(chat) for chat in fresh]),
        "probe_ms": _median([dot(state) for state in states]),
    }


def _varied(chat):
    """The chat with another system message, which no cached page begins with."""
    first, *rest = chat
    return ({**first, "content": "Decide now. " + first["content"]}, *rest)


def _median(calls: Sequence[Callable[[], Any]]) -> float:
    times = []
    for call in calls:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))
