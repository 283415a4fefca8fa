"""Argument values as JSON that keeps what JSON loses: tuples, keys that are no texts, nested calls.

A list is {"list": [...]}, a tuple {"tuple": [...]}, a dict {"dict": [[key, value], ...]}, a nested
call {"call": [function, {name: value}]}; other values stand for themselves. `worker` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_nested_calls(value: Any) -> Any:
    """A value in the tagged form of `literal`, with nested calls.

    As in BFCL's executor, the keys of dicts that are no calls become texts, and what stands inside
    lists and tuples is taken as it stands.
    """
    if isinstance(value, Mapping):
        if value and all(isinstance(v, Mapping) for v in value.values()):
            name, arguments = next(iter(value.items()))
            encoded = {str(k): with_nested_calls(v) for k, v in arguments.items()}
            return {"call": [str(name), encoded]}
        return {"dict": [[str(k), with_nested_calls(v)] for k, v in value.items()]}
    return literal(value)


def literal(value: Any) -> Any:
    """A value in the tagged form that `worker.Episode.decoded` reads."""
    if isinstance(value, Mapping):
        return {"dict": [[literal(k), literal(v)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        tag = "list" if isinstance(value, list) else "tuple"
        return {tag: [literal(v) for v in value]}
    return value
