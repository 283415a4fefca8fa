"""Functions as names that another process can import: nothing of a function is serialised."""

from __future__ import annotations

import functools
import json
import operator
import sys
from collections.abc import Callable
from typing import Any


class ToolReferenceError(ValueError):
    """A function that another process cannot import; says how to make it importable."""


def reference(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """{'module', 'file', 'qualname', 'args', 'kwargs'} of a function or of a partial of one.

    Args:
      name: of the tool, for messages.

    Raises:
      ToolReferenceError: a lambda, a function within a function, a callable object, one that its
        module does not hold under its name, or a partial with values that JSON cannot say.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
        function = function.func
    try:
        same = json.loads(json.dumps([args, kwargs], allow_nan=False)) == [list(args), kwargs]
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ToolReferenceError(
            f"tool {name!r}: the partial's arguments must be JSON values (text, numbers, lists, "
            "objects); give paths as text."
        )
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not module or not qualname or "<" in qualname or not _holds(module, qualname, function):
        raise ToolReferenceError(
            f"tool {name!r}: {getattr(function, '__qualname__', function)!r:.120} cannot be "
            "imported by another process. Define it with `def` at the top level of a module; bind "
            "settings with functools.partial."
        )
    return {**_module(module, name), "qualname": qualname, "args": list(args), "kwargs": kwargs}


def _holds(module: str, qualname: str, function: Callable[..., Any]) -> bool:
    try:
        return operator.attrgetter(qualname)(sys.modules[module]) == function
    except (KeyError, AttributeError):
        return False


def _module(module: str, name: str) -> dict[str, str | None]:
    """A module's importable name; for a script its file, which the worker loads as a module."""
    if module != "__main__":
        return {"module": module, "file": None}
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:  # python -m
        return {"module": spec.name, "file": None}
    if file is not None:
        return {"module": "__mp_main__", "file": file}
    raise ToolReferenceError(
        f"tool {name!r} is defined at a prompt, where another process cannot find it; put it into "
        "a file and import it."
    )
