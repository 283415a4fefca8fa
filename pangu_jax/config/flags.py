"""Configurations on the command line: dataclass to ConfigDict, and clear errors for overrides."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from pangu_jax.config.resolve import ConfigError


def as_config_dict(config: Any) -> ConfigDict:
    """The dataclass as a ConfigDict in which every field can be overridden on the command line.

    A field that is None becomes a placeholder of its annotated type, because a ConfigDict cannot
    tell otherwise what an override may be. In a dict a None may be overridden by anything.
    """
    hints = typing.get_type_hints(type(config))
    out = ConfigDict()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = as_config_dict(value)
        elif isinstance(value, Mapping):
            value = _plain_config_dict(value)
        elif value is None:
            value = placeholder(_inner_type(hints[field.name]))
        out[field.name] = value
    return out


def _plain_config_dict(values: Mapping[str, Any]) -> ConfigDict:
    out = ConfigDict()
    for key, value in values.items():
        if isinstance(value, Mapping):
            value = _plain_config_dict(value)
        elif dataclasses.is_dataclass(value):
            value = as_config_dict(value)
        out[key] = placeholder(object) if value is None else value
    return out


def stored_config_dict(values: Mapping[str, Any]) -> ConfigDict:
    """A run's config.json as a ConfigDict whose values can be overridden on the command line."""

    def tuples(value):
        if isinstance(value, Mapping):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return _plain_config_dict(tuples(values))


def _inner_type(hint: Any) -> type:
    """X of an annotation X | None; object, which takes any literal, where X is a dataclass."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return hint if isinstance(hint, type) and not dataclasses.is_dataclass(hint) else object


def check_overrides(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Raises ConfigError naming the first `--config.a.b=value` whose key does not exist."""
    for argument in arguments:
        flag, _, _ = argument.partition("=")
        if not flag.lstrip("-").startswith("config.") or not flag.startswith("-"):
            continue
        keys = flag.lstrip("-").split(".")[1:]
        node: Any = config
        for depth, key in enumerate(keys):
            known = list(node.keys()) if isinstance(node, ConfigDict) else []
            if key in known:
                node = node[key]
                continue
            path = ".".join(["--config", *keys[:depth]])
            close = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f" Did you mean {path}.{close[0]}?" if close else ""
            allowed = (
                f" Allowed there: {', '.join(known)}." if known else " It has no keys below it."
            )
            raise ConfigError(f"Unknown config key {path}.{key}.{hint}{allowed}")
