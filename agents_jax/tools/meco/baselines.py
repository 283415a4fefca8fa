"""Verbalised confidence: the model is asked for a number, and the number is read."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.requests import GenerateRequest
from agents_jax.tools.meco.examples import Example
from agents_jax.tools.meco.prompts import messages

_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*(%|/\s*(?:100|10)\b|out of (?:100|10)\b)?")


def read_confidence(reply: str) -> float | None:
    """The first number of a reply as a probability, None where there is none that can be one.

    '85', '85 %', '85/100' and '0.85' are .85; '8.5/10' and '8 out of 10' too. Above 100: None.
    """
    for match in _NUMBER.finditer(reply):
        value, unit = float(match.group(1)), (match.group(2) or "")
        if unit.endswith("10"):
            value *= 10
        elif not unit and "." in match.group(1) and value <= 1:
            value *= 100
        if value <= 100:
            return value / 100
    return None


def verbalised(
    model: LanguageModel, examples: Sequence[Example], *, max_tokens: int = 8
) -> tuple[np.ndarray, int]:
    """Stated confidence that a tool is needed, float64 [N], and how many replies held no number.

    Those count as 0.5.
    """
    requests = [
        GenerateRequest(
            messages=messages(e, confidence=True), max_tokens=max_tokens, tag="verbalised"
        )
        for e in examples
    ]  # fmt: skip
    read = [read_confidence(response.text) for response in model.generate(requests)]
    return (
        np.array([0.5 if value is None else value for value in read]),
        sum(value is None for value in read),
    )
