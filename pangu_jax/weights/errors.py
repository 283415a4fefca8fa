"""The one error of this folder."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights or a tokenizer that cannot be read or written; the text says which and what to do."""
