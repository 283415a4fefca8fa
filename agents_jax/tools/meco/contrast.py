"""Contrastive meta-cognition instructions and the pairs made with them.

The same question and the same response stand below an instruction of strong and of weak
meta-cognition (T+ and T-). The paper's wording, its data (written by a proprietary model) and their
number are not known: instructions, responses and defaults here are ours, and configuration values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from agents_jax.llm.requests import HiddenStatesRequest
from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.examples import Example
from agents_jax.tools.meco.prompts import messages


@dataclasses.dataclass(frozen=True)
class Wording:
    """A pair of instructions (ours)."""

    strong: str
    weak: str

    def __post_init__(self):
        if not self.strong or not self.weak or self.strong == self.weak:
            raise MecoError(
                f"contrast wording {self.strong!r} / {self.weak!r}: two different texts are needed."
            )


WORDINGS: Mapping[str, Wording] = {
    "pretend": Wording(
        "Pretend you are an assistant with strong meta-cognition: you know exactly what you can "
        "answer alone and when you need an external tool.",
        "Pretend you are an assistant with weak meta-cognition: you do not know what you can "
        "answer alone or when you need an external tool.",
    ),
    "aware": Wording(
        "You are fully aware of the limits of your own knowledge and abilities, and judge with "
        "care whether outside help is required.",
        "You are unaware of the limits of your own knowledge and abilities, and judge carelessly "
        "whether outside help is required.",
    ),
}
"""Ours; the paper's are not known. 'pretend' mirrors RepE's template for honesty."""

RESPONSES: Mapping[bool, tuple[str, ...]] = {
    True: (
        "Yes, this needs data or a computation that I do not have.",
        "Yes, I cannot do this reliably without a tool.",
    ),
    False: (
        "No, I can answer this from what I know.",
        "No, calling a tool would not help with this.",
    ),
}
"""Responses in place of those that a proprietary model wrote for the paper (ours)."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """One question and one response, below both instructions."""

    strong: HiddenStatesRequest
    weak: HiddenStatesRequest


def make_pairs(
    examples: Sequence[Example], wording: Wording, *, layers: Sequence[int], seed: int = 0,
    normed: bool = True,
) -> list[Pair]:  # fmt: skip
    """One pair per example; the response agrees with its label and is drawn among RESPONSES.

    Requests ask for all tokens of the response: since attention is causal, the state at its token k
    is that of the response cut after k tokens, so that one pass serves every truncation.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for example in examples:
        choices = RESPONSES[example.needed]
        response = choices[int(rng.integers(len(choices)))]
        strong, weak = (
            HiddenStatesRequest(
                messages=messages(example, instruction=text), continuation=response,
                layers=tuple(layers), positions="continuation", normed=normed,
                tag=f"contrast:{example.id}",
            )
            for text in (wording.strong, wording.weak)
        )  # fmt: skip
        pairs.append(Pair(strong, weak))
    return pairs


def truncations(
    strong: Sequence[np.ndarray], weak: Sequence[np.ndarray], max_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States of every truncation of k = 1 .. max_tokens tokens as pairs.

    Args:
      strong, weak: per example hidden states [C, T, D] of the response's T tokens.

    Returns:
      Both members [pairs, C, D], and the example of each pair, int [pairs].
    """
    positive, negative, owner = [], [], []
    for index, (one, other) in enumerate(zip(strong, weak, strict=True)):
        if one.shape != other.shape:
            raise MecoError(
                f"contrast pair {index}: the response has states of shape {one.shape} below one "
                f"instruction and {other.shape} below the other."
            )
        for k in range(min(max_tokens, one.shape[1])):
            positive.append(one[:, k])
            negative.append(other[:, k])
            owner.append(index)
    return np.stack(positive), np.stack(negative), np.array(owner)
