"""JSON Schemas (draft 2020-12) of tools' parameters: what is taken and what is refused.

Stricter than JSON Schema: a schema is a finite tree, because prompts and grammars write it out.
References must stay inside the schema and may not lead back to themselves. A 'pattern' is a Python
regular expression and runs as one: take those of strangers only where their time is bounded.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jsonschema

MAX_CHARS = 32_768
"""Longest schema, in characters of JSON; the longest of BFCL's 1,703 functions has 5,127."""
MAX_DEPTH = 16
"""Deepest nesting of schemas in schemas."""
MAX_NODES = 2_000
"""Most schemas in one, references written out."""

_ONE = (
    "items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems", "contains",
    "propertyNames", "not", "if", "then", "else", "contentSchema",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
# They move the base of references or are resolved at run time; tools do not need them.
_REFUSED = ("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor")
# Keywords that drafts 7 and 2020-12 give the same form. Draft 7's meta-schema is one document and
# is checked about five times as fast.
_COMMON = frozenset((
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "default",
    "title", "description", "examples", "format", "pattern", "minimum", "maximum", "multipleOf",
    "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems",
    "uniqueItems", "minProperties", "maxProperties", "anyOf", "allOf", "oneOf", "not",
))  # fmt: skip
_OTHER_TYPES = ("dict", "float", "tuple", "int", "str", "list", "any", "bool")


class SchemaError(ValueError):
    """A schema that is not taken; the message begins with where in it."""


def read_schema(schema: Any) -> dict[str, Any]:
    """The schema of a tool's parameters, checked; a copy.

    Raises:
      SchemaError: not an object with type 'object', not JSON, not valid JSON Schema, recursive,
        referring outside itself, or beyond MAX_CHARS, MAX_DEPTH or MAX_NODES.
    """
    if not isinstance(schema, Mapping):
        raise SchemaError(f"is {show(schema)}; a JSON Schema object is needed.")
    text = _text(schema)
    if len(text) > MAX_CHARS:
        raise SchemaError(f"has {len(text)} characters of JSON; at most {MAX_CHARS} are taken.")
    problem = _problem(text)
    if problem is not None:
        raise SchemaError(problem)
    return json.loads(text)


def validator(schema: Mapping[str, Any]) -> jsonschema.Draft202012Validator:
    """The validator of a checked schema; made once for equal schemas."""
    return _validator(_text(schema))


def resolve_reference(reference: Any, root: Any, where: str = "") -> Any:
    """The schema that '#/...' names, a JSON pointer into the root; where: it stands, for messages.

    Raises:
      SchemaError: a reference to the whole schema, outside of it, or to what is not there.
    """
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise SchemaError(
            f"{_shown(where)} refers to {show(reference)}, outside of the schema; copy what it "
            "names under $defs and write #/$defs/NAME."
        )
    if reference in ("#", "#/"):
        raise SchemaError(f"{_shown(where)} is recursive: it refers to the whole schema.")
    found = root
    for raw in reference.removeprefix("#/").split("/"):
        step = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif (
            isinstance(found, list) and re.fullmatch("[0-9]{1,6}", step) and int(step) < len(found)
        ):
            found = found[int(step)]
        else:
            raise SchemaError(f"{_shown(where)} refers to {show(reference)}, which is not there.")
    return found


def show(value: Any, length: int = 80) -> str:
    """A value for a message, as JSON where it is, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _jsonschema():
    """The package, loaded where a schema is checked: calls are read and judged without it."""
    try:
        import jsonschema
    except ImportError as error:
        raise SchemaError(
            "cannot be checked: install jsonschema (pip install -e '.[agents]')."
        ) from error
    return jsonschema


def _text(schema: Any) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"cannot be written as JSON ({error}).") from None


@functools.lru_cache(maxsize=4096)
def _validator(text: str) -> jsonschema.Draft202012Validator:
    return _jsonschema().Draft202012Validator(json.loads(text))


@functools.lru_cache(maxsize=4096)
def _problem(text: str) -> str | None:
    """What is wrong with a schema; a thousand tools are offered to task after task."""
    jsonschema = _jsonschema()
    try:
        schema = json.loads(text)
        visit = _Visit()
        _walk(schema, schema, "", 0, (), visit)
        drafts = jsonschema.Draft7Validator, jsonschema.Draft202012Validator
        drafts[not visit.keywords <= _COMMON].check_schema(schema)
    except SchemaError as error:
        return str(error)
    except jsonschema.SchemaError as error:
        return _explain(error)
    except RecursionError:  # a schema that passes the walk is shallow; enums may still be deep
        return "is nested too deeply."
    if schema.get("type") != "object":
        return (
            f"has the type {show(schema.get('type'))} at the top; parameters by name are an object,"
            ' so "object" is needed.'
        )
    return None


def _explain(error: jsonschema.SchemaError) -> str:
    where = "".join(f".{step}" for step in error.absolute_path)
    problem = f"{where} is {show(error.instance)}".lstrip(".")
    if error.absolute_path and error.absolute_path[-1] == "type":
        hint = ""
        if error.instance in _OTHER_TYPES:
            hint = (
                " BFCL's and ToolACE's types become JSON Schema's with "
                "agents_jax.tools.bfcl.data.to_json_schema."
            )
        return (
            f"{problem}, which is no type; allowed: array, boolean, integer, null, number, object, "
            f"string.{hint}"
        )
    return f"{problem}, which is not valid JSON Schema: {error.message[:200]}."


class _Visit:
    """How many schemas may still be visited, and the keywords seen."""

    def __init__(self) -> None:
        self.left, self.keywords = MAX_NODES, set()

    def take(self, where: str) -> None:
        self.left -= 1
        if self.left < 0:
            raise SchemaError(
                f"{_shown(where)} makes more than {MAX_NODES} schemas in one, references "
                "written out; simplify it."
            )


def _walk(
    node: Any, root: Any, where: str, depth: int, open_refs: tuple[str, ...], visit: _Visit
) -> None:
    """Visits every schema below a node, references followed, within bounds."""
    visit.take(where)
    if depth > MAX_DEPTH:
        raise SchemaError(f"{_shown(where)} is nested more than {MAX_DEPTH} deep.")
    if not isinstance(node, Mapping):
        return  # true, false, or what jsonschema will refuse
    visit.keywords.update(node)
    if isinstance(node.get("items"), list):
        visit.keywords.add("a list of items")  # of draft 7 only
    for key in _REFUSED:
        if key in node:
            raise SchemaError(f"{_shown(where)} has {key!r}, which is not taken; use $ref.")
    if "$ref" in node:
        reference = node["$ref"]
        target = resolve_reference(reference, root, where)
        if reference in open_refs:
            path = " -> ".join([*open_refs, reference])
            raise SchemaError(
                f"{_shown(where)} is recursive ({path}); write out the levels that are needed."
            )
        _walk(target, root, f"{where}.$ref", depth + 1, (*open_refs, reference), visit)
    for step, child in _children(node):
        _walk(child, root, f"{where}.{step}", depth + 1, open_refs, visit)


def _children(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in _ONE:
        if key in node:
            yield key, node[key]
    for key in _LISTS:
        if isinstance(node.get(key), list):
            for index, child in enumerate(node[key]):
                yield f"{key}.{index}", child
    for key in _MAPS:
        if isinstance(node.get(key), Mapping):
            for name, child in node[key].items():
                yield f"{key}.{name}", child


def _shown(where: str) -> str:
    path = where.lstrip(".")
    return path if len(path) <= 120 else f"{path[:117]}..." if path else "the schema"
