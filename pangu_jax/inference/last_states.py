"""Hidden states of the last tokens of texts, read like prompts: what is cached is not read again.

`pangu_jax.inference.hidden_states` reads every text whole, and serves any position.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pangu_jax.inference.request import Completion, HiddenStatesAt, Request, SamplingParams


def last_states(
    completions: Callable[[Iterable[Request]], Iterable[Completion]],
    prompts: Sequence[Sequence[int]], at: HiddenStatesAt,
    adapters: Sequence[tuple[str, float]] = (),
) -> np.ndarray:  # fmt: skip
    """Float32 (texts, layers, D) at the last token of each text.

    Args:
      completions: of an engine that can serve all of these texts.
      adapters: names and weights, for all texts.

    Raises:
      RuntimeError: the engine failed at a text.
    """
    mark = uuid.uuid4().hex  # ids are the callers' to choose, and must not be met by chance
    order = {f"text {index} of {mark}": index for index in range(len(prompts))}
    requests = (
        Request(
            id=name, prompt_ids=tuple(map(int, prompts[index])), adapters=tuple(adapters),
            sampling=SamplingParams(max_tokens=0), hidden=at,
        ) for name, index in order.items()
    )  # fmt: skip
    found: list[np.ndarray | None] = [None] * len(prompts)
    for completion in completions(requests):
        if completion.hidden is None:
            raise RuntimeError(
                f"Hidden states of {completion.id.split(' of ')[0]}: the engine ended with "
                f"{completion.finish_reason!r}, {completion.error}."
            )
        found[order[completion.id]] = completion.hidden
    return np.stack(found)
