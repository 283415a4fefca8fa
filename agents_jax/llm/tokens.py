"""A prompt and its continuation as tokens, the prompt's own unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from agents_jax.llm.errors import InvalidRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Method = Literal["joint", "separate"]
# Texts that a continuation may be put after, to be cut as in the middle of a text.
_ANCHORS = ("\n", "a", ".")


def continuation_ids(
    tokenizer: Tokenizer, prompt: str, continuation: str, *, special: bool
) -> tuple[list[int], list[int], Method]:
    """Token ids of the prompt and of the continuation, and how they were found.

    'joint': prompt and continuation are cut as one text, as the model saw such texts in training;
    taken where the prompt's tokens come out the same. Else 'separate': the continuation is cut by
    itself, since a token that reaches over the boundary would have it scored by another prompt's
    probability.

    Args:
      special: let the tokenizer add its own special tokens (bos); not for rendered chats.

    Raises:
      InvalidRequest: the prompt has no token, or the continuation no tokens of its own.
    """
    before = tokenizer.encode(prompt, add_special_tokens=special).ids
    if not before:
        raise InvalidRequest("the prompt has no token; a continuation needs one before it.")
    joint = tokenizer.encode(prompt + continuation, add_special_tokens=special).ids
    if joint[: len(before)] == before and len(joint) > len(before):
        return before, joint[len(before) :], "joint"
    return before, _alone(tokenizer, continuation), "separate"


def _alone(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that stands inside another one.

    Some tokenizers (SentencePiece) put a space before a text that begins; behind an anchor, whose
    tokens are then cut off, they do not.
    """
    for anchor in _ANCHORS:
        first = tokenizer.encode(anchor, add_special_tokens=False).ids
        both = tokenizer.encode(anchor + text, add_special_tokens=False).ids
        if both[: len(first)] == first and len(both) > len(first):
            return both[len(first) :]
    raise InvalidRequest(
        f"continuation {text!r} has no tokens of its own: the tokenizer joins it with whatever "
        "stands before it."
    )
