"""The error type of the tokenizer trainer and loader."""

from __future__ import annotations


class TokenizerError(ValueError):
    """A vocabulary cannot be trained or loaded as asked; the message names value and remedy."""
