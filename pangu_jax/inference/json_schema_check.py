"""Which JSON schemas a token mask can express: everything else is refused, nothing is ignored.

A mask library that does not know a keyword may skip it, and the text would then match less than
was asked for. Keywords and their meaning are those of JSON Schema draft 2020-12; places are JSON
pointers (RFC 6901).
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from pangu_jax.inference.errors import RequestError

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = (
    "date",
    "time",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uuid",
)

# Keyword to the kind of value it takes (see _CHECKS). 'note' says nothing about the text.
KEYWORDS = {
    **dict.fromkeys(
        ("$schema", "$id", "$comment", "title", "description", "default", "examples"), "note"
    ),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly", "discriminator"), "note"),
    "$defs": "schemas by name",
    "definitions": "schemas by name",
    "$ref": "reference",
    "type": "type",
    "enum": "values",
    "const": "value",
    "anyOf": "list of schemas",
    "oneOf": "list of schemas",
    "allOf": "list of schemas",
    "properties": "schemas by name",
    "patternProperties": "schemas by name",
    "additionalProperties": "schema",
    "required": "list of names",
    "minProperties": "count",
    "maxProperties": "count",
    "items": "schema",
    "prefixItems": "list of schemas",
    "minItems": "count",
    "maxItems": "count",
    "minLength": "count",
    "maxLength": "count",
    "pattern": "text",
    "format": "format",
    "minimum": "number",
    "maximum": "number",
    "exclusiveMinimum": "number",
    "exclusiveMaximum": "number",
    "multipleOf": "positive number",
}

_INSTEAD = {
    "additionalItems": "write prefixItems and items",
    "dependencies": "write the allowed combinations with anyOf",
    "nullable": "write anyOf with {'type': 'null'}",
    "not": "write what is allowed with anyOf, enum or pattern",
    "uniqueItems": "leave it out and check the answer afterwards",
    "x-guidance": "leave it out; it can make the mask weaker",
}


def parse_schema(source: str) -> Any:
    """The schema in `source` (JSON text), after the checks of `check_schema`.

    Raises:
      RequestError: no JSON, or a schema that a mask cannot express.
    """

    def constant(name):
        raise RequestError(f"json_schema: {name} is not JSON; write a number, null or a string.")

    try:
        schema = json.loads(source, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"json_schema is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError as error:
        raise RequestError("json_schema is nested too deeply; use $defs and $ref.") from error
    check_schema(schema)
    return schema


def check_schema(schema: Any) -> None:
    """Walks a schema and every schema inside it.

    Raises:
      RequestError: a value of the wrong kind, or a keyword that a mask cannot express; it names
        the place, the keyword and what is allowed.
    """
    walk = _Walk()
    walk.schema(schema, "#")
    for place, target in walk.references:
        if target not in walk.places:
            raise RequestError(
                f"json_schema at {place}: $ref {target!r} names no schema of this document; "
                "allowed is a pointer such as '#/$defs/NAME' to a schema of the same document."
            )


class _Walk:
    def __init__(self):
        self.places: set[str] = set()
        self.references: list[tuple[str, str]] = []

    def schema(self, schema: Any, place: str) -> None:
        self.places.add(place)
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise _refused(place, f"a schema is {schema!r}", "an object, true or false")
        for keyword, value in schema.items():
            if keyword not in KEYWORDS:
                raise _unknown(keyword, place)
            self.keyword(KEYWORDS[keyword], value, f"{place}/{_escaped(keyword)}")
        _no_repeated_names(schema, place)

    def keyword(self, kind: str, value: Any, place: str) -> None:
        if kind == "schema":
            if place.endswith("/items") and isinstance(value, list):
                raise _refused(place, "a list of schemas", "one schema; write prefixItems for more")
            self.schema(value, place)
        elif kind == "list of schemas":
            if not isinstance(value, list) or not value:
                raise _refused(place, f"{value!r}", "a list of at least one schema")
            for index, item in enumerate(value):
                self.schema(item, f"{place}/{index}")
        elif kind == "schemas by name":
            if not isinstance(value, dict):
                raise _refused(place, f"{value!r}", "an object of schemas by name")
            for name, item in value.items():
                self.schema(item, f"{place}/{_escaped(name)}")
        elif kind == "reference":
            if not isinstance(value, str):
                raise _refused(place, f"{value!r}", "a text such as '#/$defs/NAME'")
            self.references.append((place, value))
        elif kind != "note":
            allowed, fits = _CHECKS[kind]
            if not fits(value):
                raise _refused(place, f"{value!r}", allowed)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_type(value):
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _is_writable(value):
    """Whether the mask can write it: control characters have no escape among those allowed."""
    if isinstance(value, str):
        return all(character >= " " or character in "\b\f\n\r\t" for character in value)
    if isinstance(value, list):
        return all(map(_is_writable, value))
    if isinstance(value, dict):
        return all(map(_is_writable, [*value, *value.values()]))
    return True


_WRITABLE = "without control characters other than \\b \\f \\n \\r \\t"
_CHECKS = {
    "type": (f"one of {', '.join(TYPES)} or a list of them", _is_type),
    "value": (f"a value {_WRITABLE}", _is_writable),
    "values": (
        f"a list of at least one value, {_WRITABLE}",
        lambda value: isinstance(value, list) and bool(value) and _is_writable(value),
    ),
    "count": (
        "an integer of 0 or more",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    ),
    "number": ("a number", _is_number),
    "positive number": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "text": ("a text", lambda value: isinstance(value, str)),
    "format": (
        f"one of {', '.join(FORMATS)}; write other formats with pattern",
        lambda value: isinstance(value, str) and value in FORMATS,
    ),
    "list of names": (
        "a list of names",
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    ),
}


def _no_repeated_names(schema: dict[str, Any], place: str) -> None:
    """A mask remembers no free name, so it would count one that comes twice as two."""
    least = schema.get("minProperties", 0)
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if least > max(1, len(set(schema.get("required", ())))) and not closed:
        raise _refused(
            f"{place}/minProperties",
            f"{least} with names that are free to choose",
            "1, the number of required names, or additionalProperties=false without "
            "patternProperties",
        )


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _refused(place: str, found: str, allowed: str) -> RequestError:
    found = found if len(found) <= 200 else found[:200] + "…"
    return RequestError(f"json_schema at {place}: {found} is not allowed; allowed: {allowed}.")


def _unknown(keyword: str, place: str) -> RequestError:
    close = difflib.get_close_matches(keyword, KEYWORDS, n=1, cutoff=0.75)
    if keyword in _INSTEAD:
        hint = f" ({_INSTEAD[keyword]})"
    else:
        hint = f" (did you mean {close[0]!r}?)" if close else ""
    return RequestError(
        f"json_schema at {place}: a token mask cannot express the keyword {keyword!r}{hint}; "
        f"allowed: {', '.join(KEYWORDS)}."
    )
