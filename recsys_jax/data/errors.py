"""The error type of everything a user can get wrong about data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Input data or a data setting is unusable; the message names the value and the remedy."""


class DataWarning(UserWarning):
    """Data was used, but part of it was left out; the message counts what."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the nearest known name, or '' when nothing is near."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
