"""Policies and refiners by the names that configurations use.

An entry names a function `make(model, **options)` as 'module:function'; its module is imported when
it is asked for. Options follow the name: 'meco:probe=runs/meco/probe,layer=-4'. A method's own
module holds its function; where it lies elsewhere than here said, change the line here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from agents_jax.tools.agent.policy import CallPolicy, Refiner

if TYPE_CHECKING:
    from agents_jax.llm import LanguageModel

_BASELINES = "agents_jax.tools.agent.baselines"
POLICIES = {
    "own": f"{_BASELINES}:own",
    "always": f"{_BASELINES}:always",
    "never": f"{_BASELINES}:never",
    "meco": "agents_jax.tools.meco.policy:make_policy",
}
REFINERS = {
    "identity": f"{_BASELINES}:identity",
    "toolace_r": "agents_jax.tools.toolace_r.refiner:make_refiner",
}


def make_policy(spec: str, model: LanguageModel) -> CallPolicy:
    """The policy that 'NAME' or 'NAME:key=value,...' stands for.

    Raises:
      ValueError: an unknown name or option.
    """
    return _make(spec, model, POLICIES, "policy", CallPolicy)


def make_refiner(spec: str, model: LanguageModel) -> Refiner:
    """The refiner that 'NAME' or 'NAME:key=value,...' stands for; raises as make_policy."""
    return _make(spec, model, REFINERS, "refiner", Refiner)


def _make(spec: str, model: Any, table: dict[str, str], what: str, protocol: type) -> Any:
    name, _, rest = spec.partition(":")
    if name not in table:
        close = difflib.get_close_matches(name, table, 1, 0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{what} {name!r} is unknown.{hint} Known: {', '.join(table)}.")
    module, _, function = table[name].partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {name!r} cannot be loaded from {table[name]}: {error}") from error
    options = _options(rest, f"{what} {spec!r}")
    known = list(inspect.signature(make).parameters)[1:]
    for key in options:
        if key not in known:
            allowed = ", ".join(known) or "it has none"
            raise ValueError(f"{what} {name!r} has no option {key!r}; options: {allowed}.")
    made = make(model, **options)
    if not isinstance(made, protocol):
        raise TypeError(f"{table[name]} made a {type(made).__name__}, which is no {what}.")
    return made


def _options(text: str, where: str) -> dict[str, Any]:
    """{'layer': -4, 'probe': 'runs/x'} from 'layer=-4,probe=runs/x'."""
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{where}: {part!r} is no option; write key=value, commas between.")
        options[key.strip()] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    """A number, true, false, none, or else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
