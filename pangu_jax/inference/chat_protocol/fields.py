"""Reading a JSON object field by field; every mistake is an `ApiError` that names the field.

A field that is null counts as absent, as in the OpenAI protocol.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pangu_jax.inference.chat_protocol.errors import ApiError

LARGEST = 2**31 - 1
_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}


def load_json(body: bytes) -> Any:
    """The JSON value of a body in UTF-8.

    Raises:
      ApiError: not JSON (NaN and Infinity are not), or nested too deeply.
    """

    def refuse(name):
        raise ValueError(f"{name} is not a JSON value")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise ApiError(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from error
    except RecursionError as error:
        raise ApiError("The body is nested too deeply.") from error
    except ValueError as error:
        raise ApiError(f"The body is not valid JSON: {error}.") from error


def kind_of(value: Any) -> str:
    """The JSON name of a value's type."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return _NAMES[type(value)]


class Fields:
    """A JSON object; `path` is where it stands in the body, for messages."""

    def __init__(self, value: Any, path: str = ""):
        self.path = path
        if not isinstance(value, dict):
            what = path or "The body"
            raise ApiError(
                f"{what} must be a JSON object, not {kind_of(value)}.", param=path or None
            )
        self.values: dict[str, Any] = value

    def where(self, name: str) -> str:
        """Where the field stands in the body, as 'stream_options.include_usage'."""
        return f"{self.path}.{name}" if self.path else name

    def fail(self, name: str, message: str, code: str | None = None) -> ApiError:
        """The error to raise about a field."""
        return ApiError(f"{self.where(name)}: {message}", param=self.where(name), code=code)

    def wrong(self, name: str, allowed: str) -> ApiError:
        """The error to raise where a value is of the wrong type or out of range."""
        value = self.values.get(name)
        shown = json.dumps(value) if not isinstance(value, dict | list) else kind_of(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return self.fail(name, f"{shown} is not allowed; it must be {allowed}.")

    def only(
        self,
        known: Collection[str],
        *,
        ignored: Collection[str] = (),
        refused: Mapping[str, str] | None = None,
    ) -> None:
        """Refuses fields that are not known, and those of `refused` with the reason given there."""
        for name, value in self.values.items():
            if name in known or name in ignored:
                continue
            if refused and name in refused:
                if value in (None, {}, []):
                    continue
                raise self.fail(name, refused[name], code="unsupported_parameter")
            near = difflib.get_close_matches(name[:100], known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise self.fail(
                name, f"unknown field.{hint} Known: {', '.join(known)}.", code="unknown_parameter"
            )

    def get(self, name: str) -> Any:
        """The raw value, None where it is absent."""
        return self.values.get(name)

    def required(self, name: str) -> Any:
        """The raw value of a field that must be there."""
        value = self.get(name)
        if value is None:
            raise self.fail(name, "this field is required.", code="missing_required_parameter")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def integer(
        self, name: str, default: int | None = None, *, low: int = 0, high: int = LARGEST
    ) -> int | None:
        """A whole number from low to high."""
        value = self.get(name)
        if value is None:
            return default
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number from low to high."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        if not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def text(
        self, name: str, default: str | None = None, *, choices: Sequence[str] = ()
    ) -> str | None:
        """A string, one of `choices` where they are given."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or (choices and value not in choices):
            allowed = "one of " + ", ".join(map(repr, choices)) if choices else "a string"
            raise self.wrong(name, allowed)
        return value

    def strings(self, name: str, *, most: int) -> tuple[str, ...]:
        """A string or a list of at most `most` strings, none of them empty."""
        value = self.get(name)
        if value is None:
            return ()
        items = [value] if isinstance(value, str) else value
        fine = isinstance(items, list) and all(isinstance(item, str) and item for item in items)
        if not fine or len(items) > most:
            raise self.wrong(name, f"a string or up to {most} strings, none of them empty")
        return tuple(items)

    def array(self, name: str) -> list[Any] | None:
        """A list."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "an array")
        return value

    def object(self, name: str) -> Fields | None:
        """An object."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.where(name))
