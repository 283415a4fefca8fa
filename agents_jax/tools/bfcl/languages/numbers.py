"""Whole numbers in texts of models."""

from __future__ import annotations


def whole_number(digits: str, text: str) -> int | str:
    """The number that `digits` write; `text` where they are more than Python reads."""
    try:
        return int(digits)
    except ValueError:
        return text
