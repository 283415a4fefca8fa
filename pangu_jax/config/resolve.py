"""Turns nested mappings into frozen dataclasses, with errors that name the key to change.

Experiments are written as `ml_collections.ConfigDict` (or plain dicts); everything inside the
packages takes frozen dataclasses. This file is the only bridge. It needs neither
`ml_collections` nor jax.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
_MISSING = dataclasses.MISSING


class ConfigError(ValueError):
    """A configuration value or key that cannot be used; the text says which and why."""


def resolve(cls: type[T], config: Any, *, path: str = "--config") -> T:
    """Builds the dataclass `cls` from a nested mapping.

    Supported field types: int, float, str, bool, None, `Literal`, `tuple[X, ...]`,
    `tuple[X, Y]`, `dict[str, X]`, nested dataclasses, unions of these, `Any`.

    Args:
      cls: a dataclass type.
      config: a mapping, an `ml_collections.ConfigDict`, or an instance of `cls` (returned as is).
      path: dotted name of this level in messages; the default matches the command-line flag.

    Raises:
      ConfigError: unknown key (with a suggestion), missing key, wrong type, or a value that the
        dataclass itself refuses in `__post_init__`.
    """
    if isinstance(config, cls):
        return config
    mapping = _as_mapping(config)
    if mapping is None:
        raise ConfigError(f"{path}: expected a group of keys ({_names(cls)}), got {_show(config)}.")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = _type_hints(cls)
    for key in mapping:
        if key not in fields:
            raise ConfigError(_unknown_key(path, key, fields))
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _coerce(hints[name], mapping[name], f"{path}.{name}")
        elif field.default is _MISSING and field.default_factory is _MISSING:
            raise ConfigError(
                f"{path}.{name} is required and missing: set it in the config file "
                f"or with {path}.{name}=... (a {_type_name(hints[name])})."
            )
    try:
        return cls(**values)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def to_dict(value: Any) -> Any:
    """JSON-ready copy of a dataclass (or mapping, tuple, scalar): dicts, lists, scalars only."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    mapping = _as_mapping(value)
    if mapping is not None:
        return {str(key): to_dict(item) for key, item in mapping.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # NumPy scalars
        return value.item()
    raise ConfigError(
        f"A config holds {_show(value)}; only numbers, text, booleans, None, lists "
        "and groups of these can be written into the work directory."
    )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted-key view of a nested config: {'train.steps': 100, ...}. Lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in to_dict(config).items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def differing_keys(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old value, new value)} for every key whose value differs; absent is '-'."""
    a, b = flatten(old), flatten(new)
    return {
        key: (a.get(key, "-"), b.get(key, "-"))
        for key in sorted(a.keys() | b.keys())
        if a.get(key, "-") != b.get(key, "-") or type(a.get(key)) is not type(b.get(key))
    }


def _as_mapping(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    # ConfigDict is not a Mapping; its to_dict also resolves field references.
    if type(value).__module__.startswith("ml_collections") and hasattr(value, "to_dict"):
        return value.to_dict()
    return None


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _names(cls: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(cls) if f.init)


def _unknown_key(path: str, key: str, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.6)
    hint = f" Did you mean {path}.{close[0]}?" if close else ""
    return f"Unknown config key {path}.{key}.{hint} Allowed here: {', '.join(sorted(fields))}."


def _show(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(v) for v in typing.get_args(hint))
    if _is_union(hint):
        return " or ".join(_type_name(arg) for arg in typing.get_args(hint))
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is None and isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """`value` as an instance of the annotated type `hint`, or ConfigError naming `path`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if _is_union(hint):
        return _coerce_union(hint, args, value, path)
    if origin is typing.Literal:
        # The type counts too, because True == 1.
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
        close = difflib.get_close_matches(str(value), [str(a) for a in args], n=1, cutoff=0.6)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"{path} is {_show(value)}; allowed are {', '.join(repr(a) for a in args)}.{suggestion}"
        )
    if dataclasses.is_dataclass(hint):
        return resolve(hint, value, path=path)
    if origin is tuple or hint is tuple:
        return _coerce_tuple(hint, args, value, path)
    if origin in (dict, Mapping) or hint is dict:
        mapping = _as_mapping(value)
        if mapping is None:
            raise _type_error(hint, value, path)
        item = args[1] if args else Any
        return {str(k): _coerce(item, v, f"{path}.{k}") for k, v in mapping.items()}
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise _type_error(type(None), value, path)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int in Python; steps=True is a mistake all the same.
    if isinstance(value, bool) and hint is not bool or not isinstance(value, hint):
        raise _type_error(hint, value, path)
    return value


def _coerce_union(hint: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    # An exact type goes first, so that int | float keeps 3 an int.
    ordered = sorted(args, key=lambda arg: arg is not type(value))
    candidates = [arg for arg in ordered if arg is not type(None)]
    for arg in candidates:
        try:
            return _coerce(arg, value, path)
        except ConfigError as error:
            errors.append(error)
    if len(candidates) == 1 and dataclasses.is_dataclass(candidates[0]):
        raise errors[0]
    raise _type_error(hint, value, path)


def _coerce_tuple(hint: Any, args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _type_error(hint, value, path)
    if not args:
        return tuple(value)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_coerce(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise ConfigError(f"{path} has {len(value)} entries ({value!r}); expected {len(args)}.")
    return tuple(
        _coerce(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
    )


def _type_error(hint: Any, value: Any, path: str) -> ConfigError:
    return ConfigError(f"{path}: expected {_type_name(hint)}, got {_show(value)}.")
