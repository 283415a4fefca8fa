"""What the model is asked: whether a tool is needed, in words, with the answer Yes or No first.

The paper's prompts are not known, but for MetaTool's, which is that benchmark's own. All other
wordings are ours. A meta-cognition instruction, where there is one, stands before the question, as
RepE's template has it (user tag, instruction and contrast, assistant tag, response).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.examples import Example

SYSTEM = "You decide whether a tool is needed."
"""Short, and there so that a chat template does not put its own default in."""
_TAIL = "Answer Yes or No first, then give a brief explanation."
_QUESTIONS = {
    "tools": "You can use these tools: {tools}\nUser query: {query}\n"
    "Does one of these tools have to be called to answer the user query? " + _TAIL,
    "no_tools": "User query: {query}\n"
    "Do you need an external tool to answer this user query? " + _TAIL,
    "calculator": "Question: {query}\nDo you need a calculator to answer this question? " + _TAIL,
    "retrieval": "Question: {query}\n"
    "Do you have to look this up in an external source to answer it? " + _TAIL,
    # MetaTool's own text comes with the data and is kept in `shown`.
    "metatool": "{shown}\n" + _TAIL,
}
TEMPLATES = tuple(_QUESTIONS)
_CONFIDENCE = "Answer with one number from 0 to 100: how sure are you that the answer is Yes?"


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Functions as compact JSON, name, description and parameters."""
    return json.dumps(list(tools), separators=(",", ":"), ensure_ascii=False, default=list)


def question(example: Example, *, instruction: str = "", confidence: bool = False) -> str:
    """The user's message.

    Args:
      instruction: a meta-cognition instruction to put before it.
      confidence: ask for a number (verbalised confidence) in place of Yes or No.

    Raises:
      MecoError: a template that is unknown.
    """
    if example.template not in _QUESTIONS:
        raise MecoError(
            f"template {example.template!r} of {example.id!r} is unknown; allowed: "
            f"{', '.join(TEMPLATES)}."
        )
    text = _QUESTIONS[example.template]
    if confidence:
        text = text.replace(_TAIL, _CONFIDENCE)
    # One pass: what a query holds in braces is never a field.
    fields = {
        "tools": tools_text(example.tools) if example.tools else "none",
        "query": example.query,
        "shown": example.shown,
    }
    for name in ("tools", "query", "shown"):
        before, found, after = text.partition("{" + name + "}")
        if found:
            text = before + "\0" + name + "\0" + after
    for name, value in fields.items():
        text = text.replace("\0" + name + "\0", value)
    return f"{instruction}\n{text}" if instruction else text


def messages(
    example: Example, *, instruction: str = "", confidence: bool = False
) -> tuple[dict[str, str], ...]:
    """The chat whose next token is the model's Yes or No."""
    asked = question(example, instruction=instruction, confidence=confidence)
    return (
        {"role": "system", "content": SYSTEM},
        *(dict(message) for message in example.history),
        {"role": "user", "content": asked},
    )
