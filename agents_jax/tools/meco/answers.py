"""The model's own answer: log-probabilities of Yes and No as its first token.

The larger of both is the naive decision. Over the whole vocabulary a small model's likeliest token
is often neither, so the choice is restricted to the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.requests import GenerateRequest, ScoreRequest

YES = ("Yes", "yes", " Yes", " yes", "YES")
NO = ("No", "no", " No", " no", "NO")
"""Variants of the answers; the first is the one that is appended."""
_TOP = 20  # log-probabilities asked for with the first token; what is missing is scored apart


def answer_tokens(model: LanguageModel, chat: Sequence[dict[str, str]]) -> tuple[int, int]:
    """How many tokens 'Yes' and 'No' are after a chat; 1 and 1 with most tokenizers."""
    request = ScoreRequest(messages=tuple(chat), continuations=(YES[0], NO[0]), tag="meco")
    (found,) = model.score([request])
    yes, no = (max(len(score.tokens), 1) for score in found.continuations)
    return yes, no


def answer_logprobs(
    model: LanguageModel, chats: Sequence[Sequence[dict[str, str]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the answers as the first token.

    The likeliest tokens come with one generated token; answers that are not among them are scored
    apart, so that the result is exact either way.

    Returns:
      float64 [N, 2] of 'Yes' and 'No', and the same summed over the variants in YES and NO (those
      variants only that are among the likeliest tokens).
    """
    tops: list[dict[str, float]] = [{} for _ in chats]
    if "logprobs" in model.capabilities and "generate" in model.capabilities:
        asked = [
            GenerateRequest(messages=tuple(chat), max_tokens=1, logprobs=_TOP, tag="meco")
            for chat in chats
        ]
        for top, response in zip(tops, model.generate(asked), strict=True):
            if response.logprobs:
                top.update(reversed(response.logprobs[0].top))  # of equals, the likeliest
    lacking = [i for i, top in enumerate(tops) if YES[0] not in top or NO[0] not in top]
    if lacking:
        scores = model.score(
            [
                ScoreRequest(messages=tuple(chats[i]), continuations=(YES[0], NO[0]), tag="meco")
                for i in lacking
            ]
        )
        for index, found in zip(lacking, scores, strict=True):
            # Read from the prompt's own pass; what stood among the likeliest stays as it was.
            tops[index] = dict(zip((YES[0], NO[0]), found.logprobs, strict=True)) | tops[index]
    plain = np.array([[top[YES[0]], top[NO[0]]] for top in tops], np.float64)
    summed = np.array(
        [
            [np.logaddexp.reduce([top[v] for v in variants if v in top]) for variants in (YES, NO)]
            for top in tops
        ],
        np.float64,
    )
    return plain, summed
