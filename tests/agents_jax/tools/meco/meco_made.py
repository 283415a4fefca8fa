"""Examples and models made by hand."""

from __future__ import annotations

import numpy as np

from agents_jax.llm import ScriptedModel
from agents_jax.tools.meco.examples import Example, ExampleSet

WIDTH = 6
LAYERS = (-3, -2, -1)


def example(number: int, needed: bool, **changes) -> Example:
    """A question whose text says nothing about the label."""
    values = {"id": f"e{number}", "query": f"question number {number}", "needed": needed}
    return Example(**(values | {"template": "no_tools"} | changes))


def example_set(size: int, name: str = "made") -> ExampleSet:
    return ExampleSet(name, "made by hand", tuple(example(i, i % 2 == 0) for i in range(size)))


def states_of(request, *, signal: float = 3.0) -> np.ndarray:
    """Hidden states in which dimension l of layer l says whether the question's number is even (a
    tool is needed), beside noise that depends on the text alone.
    """
    text = request.messages[-1]["content"] if request.messages else request.prompt
    digits = [int(word) for word in text.split() if word.isdigit()]
    rng = np.random.default_rng(abs(hash_of(text + request.continuation)))
    count = len(request.continuation.split()) if request.positions == "continuation" else None
    count = count or len(request.positions)
    values = rng.standard_normal((len(request.layers), count, WIDTH))
    if digits:
        sign = 1 if digits[-1] % 2 == 0 else -1
        for column in range(len(request.layers)):
            values[column, :, column % WIDTH] += signal * sign
    if "strong meta-cognition" in text or "weak meta-cognition" in text:
        values[:, :, WIDTH - 1] += 5.0 if "strong" in text else -5.0
    return values


def hash_of(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode())


def model(**changes) -> ScriptedModel:
    """Says Yes to two questions of three, whatever is needed."""

    def score(request, continuation):
        digits = [int(w) for w in request.messages[-1]["content"].split() if w.isdigit()]
        likes_yes = bool(digits) and digits[-1] % 3 != 0
        return -0.5 if (continuation == "Yes") == likes_yes else -1.5

    settings = {"answers": lambda r: "a", "scores": score, "hidden": states_of, "name": "made"}
    return ScriptedModel(**(settings | changes))
