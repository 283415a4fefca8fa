"""Tools as definitions: name, description, parameters; and arguments checked by them."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from agents_jax.tools.literals import MAX_INT_BITS
from agents_jax.tools.schemas import SchemaError, read_schema, show, validator

if TYPE_CHECKING:
    import jsonschema

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_FUNCTION_KEYS = ("name", "description", "parameters", "strict")
_COMBINING = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")


class ToolDefinitionError(ValueError):
    """A tool that is not taken: the message names it, what is wrong and what is allowed."""


class ArgumentError(ValueError):
    """Arguments that do not fit a definition; `problems` are all that is wrong with them."""

    def __init__(self, name: str, problems: Iterable[Problem]):
        self.name, self.problems = name, tuple(problems)
        super().__init__(f"{name}: " + " ".join(map(str, self.problems)))


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with arguments.

    path: of the value, as 'size' or 'sizes[2].unit'. value: as given, None where it is missing.
    keyword: of JSON Schema that it breaks, such as 'type', 'enum', 'required'. message: what is
    wrong and what is allowed.
    """

    path: str
    value: Any
    keyword: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclasses.dataclass(frozen=True)
class ToolDefinition:
    """A tool that a model may call.

    name: 1 to 128 letters, digits, '_', '.', '-' (BFCL's names have dots; some endpoints take 64
      characters and no dots). description: for the model. parameters: JSON Schema of an object,
      without references to itself or outside; kept as a copy.

    Raises:
      ToolDefinitionError: a name or parameters that are not so.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )

    def __post_init__(self):
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ToolDefinitionError(
                f"the name {show(self.name)} is not allowed; 1 to 128 letters, digits, '_', '.' or "
                "'-'. Rename the tool."
            )
        if not isinstance(self.description, str):
            raise ToolDefinitionError(
                f"the description of {self.name!r} is {show(self.description)}; text is needed."
            )
        try:
            object.__setattr__(self, "parameters", read_schema(self.parameters))
        except SchemaError as error:
            raise ToolDefinitionError(f"the parameters of {self.name!r}: {error}") from None

    def openai(self) -> dict[str, Any]:
        """The definition in the form of the OpenAI protocol's `tools`."""
        return {"type": "function", "function": self.function()}

    def function(self) -> dict[str, Any]:
        """The bare form {'name', 'description', 'parameters'}, a copy."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": copy.deepcopy(dict(self.parameters)),
        }

    @property
    def properties(self) -> Mapping[str, Any]:
        """Schemas of the parameters by name, as far as they stand at the top of the schema."""
        return self.parameters.get("properties", {})

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the parameters that must be given."""
        return tuple(self.parameters.get("required", ()))


def read_tools(values: Any, *, where: str = "tools") -> tuple[ToolDefinition, ...]:
    """Definitions out of a list in the OpenAI form or of bare functions, in its order.

    Args:
      values: {"type": "function", "function": {...}} or {"name", "description", "parameters"} each,
        or ToolDefinitions. No parameters: none are taken. No 'type' beside 'properties': 'object'.
      where: what the list is called in messages, such as 'tasks.jsonl:3: tools'.

    Raises:
      ToolDefinitionError: names the entry.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ToolDefinitionError(f"{where} is {show(values)}; a list of tools is needed.")
    found: dict[str, int] = {}
    definitions = []
    for index, value in enumerate(values):
        entry = f"{where}[{index}]"
        try:
            definition = value if isinstance(value, ToolDefinition) else _read(value)
        except ToolDefinitionError as error:
            raise ToolDefinitionError(f"{entry}: {error}") from None
        first = found.setdefault(definition.name, index)
        if first != index:
            raise ToolDefinitionError(
                f"{entry}: the name {definition.name!r} is already that of {where}[{first}]; names "
                "must differ. Rename one or leave it out."
            )
        definitions.append(definition)
    return tuple(definitions)


def check_arguments(definition: ToolDefinition, arguments: Any) -> dict[str, Any]:
    """The arguments as JSON values (tuples become lists), if they fit the definition.

    Arguments that the definition does not name are refused unless it allows them itself
    ('additionalProperties', 'patternProperties').

    Raises:
      ArgumentError: holds every problem found, not the first alone.
    """
    if not isinstance(arguments, Mapping):
        message = f"the arguments are {show(arguments)}; an object of arguments by name is needed."
        raise ArgumentError(definition.name, [Problem("", arguments, "type", message)])
    problems: list[Problem] = []
    plain = _plain(arguments, "", problems)
    if not problems:
        checker = validator(_closed(definition.parameters))
        try:
            for error in checker.iter_errors(plain):
                problems += _problems(error)
        except (RecursionError, ArithmeticError) as error:  # such as 'multipleOf' of a huge number
            problems.append(Problem("", None, "type", f"the arguments cannot be checked: {error}."))
    if problems:
        raise ArgumentError(definition.name, sorted(problems, key=lambda p: p.path))
    return plain


def _read(value: Any) -> ToolDefinition:
    if not isinstance(value, Mapping):
        raise ToolDefinitionError(f"is {show(value)}; an object is needed.")
    function = value
    if "function" in value or "type" in value:
        if value.get("type", "function") != "function":
            raise ToolDefinitionError(f"has the type {show(value['type'])}; allowed: 'function'.")
        function = value.get("function")
        if not isinstance(function, Mapping):
            raise ToolDefinitionError(f"'function' is {show(function)}; an object is needed.")
    unknown = [key for key in function if key not in _FUNCTION_KEYS]
    if unknown:
        raise ToolDefinitionError(
            f"unknown keys {', '.join(map(show, unknown))}; known: {', '.join(_FUNCTION_KEYS)}."
        )
    if "name" not in function:
        raise ToolDefinitionError("has no 'name'; give it one.")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    elif isinstance(parameters, Mapping):
        if "type" not in parameters and (not parameters or "properties" in parameters):
            parameters = {"type": "object", **parameters}
    return ToolDefinition(function["name"], function.get("description") or "", parameters)


def _plain(value: Any, path: str, problems: list[Problem], depth: int = 0) -> Any:
    """The value with lists for tuples; keys that are no text and deep nesting are problems."""
    if depth > 64:
        problems.append(Problem(path[:80], None, "type", "nested more than 64 deep."))
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                problems.append(Problem(path, key, "type", f"the key {show(key)} is not text."))
        return {
            str(key): _plain(item, f"{path}.{key}".lstrip("."), problems, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{path}[{i}]", problems, depth + 1) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int) and value.bit_length() <= MAX_INT_BITS:
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    shown = "an integer of that size" if isinstance(value, int) else f"{value!r:.80}"
    problems.append(Problem(path, value, "type", f"{shown} is not taken as a JSON value."))
    return None


def _closed(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with unknown arguments refused where it does not speak of them."""
    spoken = ("additionalProperties", "unevaluatedProperties", "patternProperties")
    if any(key in parameters for key in spoken):
        return parameters
    combined = any(key in parameters for key in _COMBINING)
    return {**parameters, spoken[1 if combined else 0]: False}


def _problems(error: jsonschema.ValidationError) -> Iterator[Problem]:
    steps = error.absolute_path
    path = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps).lstrip(".")
    keyword, limit, value = str(error.validator), error.validator_value, error.instance
    if keyword == "required":
        for name in limit:
            if name not in value:
                yield Problem(f"{path}.{name}".lstrip("."), None, keyword, "is missing.")
    elif keyword == "additionalProperties" and limit is False:
        known = list(error.schema.get("properties", {}))
        allowed = ", ".join(known[:40]) + (", ..." if len(known) > 40 else "")
        for name in value:
            if name not in known:
                message = f"is unknown; allowed: {allowed}." if known else "no arguments are taken."
                yield Problem(f"{path}.{name}".lstrip("."), value[name], keyword, message)
    elif keyword == "type":
        allowed = " or ".join([limit] if isinstance(limit, str) else limit)
        yield Problem(path, value, keyword, f"{show(value)} is not allowed; type {allowed}.")
    elif keyword in ("enum", "const"):
        options = limit if keyword == "enum" else [limit]
        allowed = ", ".join(show(option) for option in options[:40])
        allowed += f", and {len(options) - 40} more" if len(options) > 40 else ""
        yield Problem(path, value, keyword, f"{show(value)} is not allowed; one of: {allowed}.")
    elif keyword in ("anyOf", "oneOf"):
        yield Problem(
            path, value, keyword, f"{show(value)} is not allowed; it must fit "
            f"{'one' if keyword == 'anyOf' else 'exactly one'} of {show(limit, 400)}.",
        )  # fmt: skip
    elif keyword == "unevaluatedProperties":
        yield Problem(path, value, keyword, f"{error.message[:200]}.")
    else:
        yield Problem(
            path, value, keyword,
            f"{show(value)} is not allowed; {keyword} is {show(limit, 200)}.",
        )  # fmt: skip
