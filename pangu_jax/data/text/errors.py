"""The error type of everything a user can get wrong about text data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TextDataError(ValueError):
    """Text, or a setting of the text pipeline, is unusable; the message names the remedy."""


class TextDataWarning(UserWarning):
    """Text was used, but part of it was left out; the message counts what."""


def choose_from(what: str, value: object, known: Iterable[object], remedy: str) -> TextDataError:
    """The error for a value that is not among the known ones, with the nearest suggested."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return TextDataError(
        f"Unknown {what} {value!r}; known are {', '.join(names) or '(none)'}.{hint} {remedy}"
    )
