"""Whether calls agree with a gold answer: BFCL's rules for syntax trees, written anew.

The rules (types, allowed values, order-free matching of several calls) follow the behaviour of
`bfcl_eval.eval_checker.ast_eval.ast_checker`, version 2026.3.23; its oddities are kept where they
decide whether an answer counts, so that accuracies can be compared. Java and JavaScript arguments
come as texts (`languages.parse_language_calls`) and are read by the type of their parameter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agents_jax.tools.bfcl.data import ANSWERED_CATEGORIES, CATEGORIES, Item
from agents_jax.tools.bfcl.languages import ARRAY_TYPES, VALUE_TYPES, read_value
from agents_jax.tools.calls import Call

ERROR_TYPES = (
    "wrong_count",
    "wrong_func_name",
    "missing_required",
    "unexpected_param",
    "missing_optional",
    "type_error:simple",
    "type_error:nested",
    "type_error:java",
    "type_error:js",
    "value_error:string",
    "value_error:list",
    "value_error:dict_key",
    "value_error:dict_value",
    "value_error:dict",
    "value_error:list_dict_count",
    "value_error:list_dict",
    "value_error:others",
    "cannot_find_match",
    "irrelevance:called",
    "relevance:not_called",
)
"""What `Verdict.error_type` may be; the names are BFCL's without the checker function's name."""

_TYPES: dict[str, dict[str, type]] = {
    "python": {
        "string": str,
        "integer": int,
        "float": float,
        "boolean": bool,
        "array": list,
        "tuple": list,
        "dict": dict,
        "any": str,
    },
    **VALUE_TYPES,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Outcome of a check; error_type is one of ERROR_TYPES, None where valid."""

    valid: bool
    error_type: str | None = None
    message: str = ""


VALID = Verdict(True)


def check(item: Item, calls: Sequence[Call]) -> Verdict:
    """Whether the calls answer the item.

    One gold call: exactly one call, equal in name, with allowed arguments. Parallel categories: as
    many calls as gold calls; each gold call takes the first unused call that fits. Irrelevance: no
    call. Relevance: some call.

    Raises:
      ValueError: a category without rules here, or a schema of an unknown type.
    """
    allowed = {**CATEGORIES, **ANSWERED_CATEGORIES}
    if item.category not in allowed:
        raise ValueError(
            f"{item.id} has the category {item.category!r}; allowed: {', '.join(allowed)}."
        )
    if item.category not in ANSWERED_CATEGORIES:
        return _check_relevance(item.category, len(calls))
    if len(calls) != len(item.ground_truth):
        return Verdict(
            False, "wrong_count", f"{len(calls)} calls where {len(item.ground_truth)} are due"
        )
    if "parallel" in item.category:
        return _check_unordered(item, calls)
    return _check_call(item, item.ground_truth[0], calls[0])


def standardise(text: str) -> str:
    """The text as strings are compared: no blanks, no `,./-_*^`, lower case, one kind of quote."""
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _check_relevance(category: str, num_calls: int) -> Verdict:
    if "irrelevance" in category:
        if num_calls:
            return Verdict(False, "irrelevance:called", f"{num_calls} calls where none is due")
    elif not num_calls:
        return Verdict(False, "relevance:not_called", "no call where one is due")
    return VALID


def _check_unordered(item: Item, calls: Sequence[Call]) -> Verdict:
    unused = list(calls)
    for index, gold in enumerate(item.ground_truth):
        failures = []
        for position, call in enumerate(unused):
            verdict = _check_call(item, gold, call)
            if verdict.valid:
                del unused[position]
                break
            failures.append(f"{call.name}: {verdict.error_type}")
        else:
            return Verdict(
                False,
                "cannot_find_match",
                f"no call fits gold call {index} ({next(iter(gold))}): {'; '.join(failures)}",
            )
    return VALID


def _check_call(item: Item, gold: Mapping[str, Mapping[str, list]], call: Call) -> Verdict:
    """One call against one gold call; the first thing that is wrong, in BFCL's order."""
    ((gold_name, allowed),) = gold.items()
    function = next((f for f in item.raw_functions if f["name"] == gold_name), None)
    if function is None:
        raise ValueError(f"{item.id}: the gold function {gold_name!r} is not among those offered.")
    if call.name != gold_name:
        return Verdict(False, "wrong_func_name", f"{call.name!r} where {gold_name!r} is due")
    properties = function["parameters"]["properties"]
    for name in function["parameters"]["required"]:
        if name not in call.arguments:
            return Verdict(False, "missing_required", f"required {name!r} is missing")
    for name, value in call.arguments.items():
        if name not in properties or name not in allowed:
            return Verdict(False, "unexpected_param", f"{name!r} is not a parameter due here")
        error = _check_argument(properties[name], value, allowed[name], item.language)
        if error:
            return Verdict(
                False, error, f"{name}={_short(value)}; allowed: {_short(allowed[name])}"
            )
    for name, values in allowed.items():
        if name not in call.arguments and "" not in values:
            return Verdict(False, "missing_optional", f"{name!r} is missing, and due here")
    return VALID


def _check_argument(
    schema: Mapping[str, Any], value: Any, allowed: Sequence, language: str
) -> str | None:
    """Error type of one argument, None where it is right."""
    kind = _type(schema, language)
    arrays = ("array", "tuple") if language == "python" else ARRAY_TYPES
    is_array = schema["type"] in arrays and "items" in schema
    inner = _type(schema["items"], language) if is_array else None
    if language != "python":
        if type(value) is not str:
            return "type_error:java" if language == "java" else "type_error:js"
        value = read_value(value, schema, language)
    elif schema["type"] == "tuple" and type(value) is tuple:
        value = list(value)
    elif kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):  # too large: stays an integer, a wrong type
            value = float(value)
    return _check_value(value, kind, inner, allowed)


def _check_value(value: Any, kind: type, inner: type | None, allowed: Sequence) -> str | None:
    """Error type of a value of the type `kind` with elements of the type `inner`."""
    gold_type = _first_type(allowed)
    # A gold value of another type than the schema's stands for the name of a variable.
    variable = gold_type is not None and gold_type is not kind
    if type(value) is kind:
        if inner is not None and not any(_elements_fit(value, inner, a) for a in allowed):
            return "type_error:nested" if gold_type is kind else "type_error:simple"
    elif gold_type is not None and type(value) is gold_type:
        variable = True
    else:
        return "type_error:simple"
    if variable:
        return None if value in allowed else "value_error:others"
    if kind is dict:
        return _check_dict(value, allowed)
    if kind is list:
        return _check_dicts(value, allowed) if inner is dict else _check_list(value, allowed)
    if kind is str:
        texts = [standardise(a) for a in allowed if type(a) is str]
        return None if standardise(value) in texts else "value_error:string"
    return None if value in allowed else "value_error:others"


def _elements_fit(value: list, inner: type, allowed: Any) -> bool:
    """Whether every element has the schema's type, or that of the gold list's first element."""
    if type(allowed) is not list:
        return True  # "" and names of variables set no type
    other = _first_type(allowed)
    return all(type(v) is inner or (other is not None and type(v) is other) for v in value)


def _check_list(value: list, allowed: Sequence) -> str | None:
    # A string among the allowed values counts as the list of its characters, "" as the empty list.
    lists = [_standardised(a) for a in allowed if isinstance(a, (list, str))]
    return None if _standardised(value) in lists else "value_error:list"


def _check_dict(value: dict, allowed: Sequence) -> str | None:
    error = "value_error:dict"
    for gold in allowed:
        if gold == "":
            continue
        error = _check_one_dict(value, gold)
        if error is None:
            return None
    return error


def _check_one_dict(value: dict, gold: Mapping[str, list]) -> str | None:
    # A missing key is reported before a wrong value.
    if any(key not in value and "" not in leaves for key, leaves in gold.items()):
        return "value_error:dict_key"
    for key, leaf in value.items():
        if key not in gold:
            return "value_error:dict_key"
        (leaf,) = _standardised([leaf])
        if leaf not in _standardised(gold[key]):
            return "value_error:dict_value"
    return None


def _check_dicts(value: list, allowed: Sequence) -> str | None:
    error = "value_error:list_dict"
    for gold in allowed:
        if len(gold) != len(value):
            error = "value_error:list_dict_count"
            continue
        for one, due in zip(value, gold, strict=True):
            # Another allowed "" lets any elements through the check of types.
            error = _check_dict(one, [due]) if isinstance(one, dict) else "type_error:nested"
            if error:
                break
        else:
            return None
    return error


def _standardised(values: Iterable) -> list:
    return [standardise(v) if type(v) is str else v for v in values]


def _first_type(allowed: Sequence) -> type | None:
    """Type of the first value that is not "" (which means 'may be left out')."""
    return next((type(a) for a in allowed if a != ""), None)


def _type(schema: Mapping[str, Any], language: str) -> type:
    kind, types = schema.get("type"), _TYPES[language]
    if kind not in types:
        raise ValueError(f"schema type {kind!r} is unknown; allowed: {', '.join(types)}.")
    return types[kind]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
