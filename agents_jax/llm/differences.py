"""Which recorded request comes nearest to one that is missing, and where they part."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agents_jax.llm.hashing import canonical

_SHOWN = 5  # differences named
_CLOSE = 12  # candidates whose texts are compared
_LENGTH = 2000  # characters of text compared


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flat(entry, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, entry in enumerate(value):
            yield from _flat(entry, f"{path}[{index}]")
    else:
        yield path, value


def nearest_difference(asked: Mapping[str, Any], recorded: Iterable[Mapping[str, Any]]) -> str:
    """A sentence on how the nearest of `recorded` differs from `asked`.

    Nearest: fewest differing fields; among those, the most alike text.
    """
    ours = dict(_flat(asked))

    def distance(other):
        theirs = dict(_flat(other))
        paths = ours.keys() | theirs.keys()
        return sum(ours.get(path, _ABSENT) != theirs.get(path, _ABSENT) for path in paths)

    numbered = ((distance(other), number, other) for number, other in enumerate(recorded))
    close = heapq.nsmallest(_CLOSE, numbered)
    if not close:
        return "The recording is empty."
    text = canonical(asked)[:_LENGTH]

    def likeness(entry):
        matcher = difflib.SequenceMatcher(None, text, canonical(entry[2])[:_LENGTH], False)
        return entry[0], -matcher.quick_ratio()

    theirs = dict(_flat(min(close, key=likeness)[2]))
    paths = sorted(ours.keys() | theirs.keys())
    parts = [
        f"{path}: {_compare(ours.get(path, _ABSENT), theirs.get(path, _ABSENT))}"
        for path in paths
        if ours.get(path, _ABSENT) != theirs.get(path, _ABSENT)
    ]
    more = f"; and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return f"The nearest recorded request differs in {'; '.join(parts[:_SHOWN])}{more}."


class _Absent:
    def __repr__(self):
        return "the default"


_ABSENT = _Absent()


def _compare(ours: Any, theirs: Any) -> str:
    if not isinstance(ours, str) or not isinstance(theirs, str):
        return f"asked {ours!r}, recorded {theirs!r}"
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    start = max(0, at - 10)
    return (
        f"from character {at} on, asked {ours[start : at + 30]!r}, "
        f"recorded {theirs[start : at + 30]!r}"
    )
