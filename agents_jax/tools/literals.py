"""Calls read out of Python syntax trees and JSON: literals only, bounded work, nothing executed."""

from __future__ import annotations

import ast
import json
import math
import operator
import re
import warnings
from typing import Any

MAX_DEPTH = 32
"""Deepest nesting of brackets, and of operators, that is read."""
MAX_INT_BITS = 1024
"""Largest integer, in bits: well above any argument, well below what takes long to print."""

ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
"""Operators on numbers that a syntax tree may hold; who applies them bounds the operands first."""


# Invalid escapes and numbers run into words make the compiler warn.
_MAY_WARN = re.compile(r"\\|\d\.?[A-Za-z]|0[xX]")


class CallParseError(ValueError):
    """A text that is not a list of calls; the message says why."""


def read_python(text: str, *, strict: bool) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of each call in `f(a=1)` or `[f(a=1), g()]`.

    Values: literals, arithmetic on numbers (+ - * / // % **, results of up to 1,024 bits), sums of
    strings; as in BFCL a bare name is its own text, and so are an indexed name and a nested call
    without keywords; a nested call with keywords is {name: arguments}.

    Args:
      strict: refuse positional and repeated arguments, and read signs before any number. Otherwise,
        as BFCL does, drop the positional ones, keep the last of the repeated, and read signs only
        before a plain number.

    Raises:
      CallParseError: anything else.
    """
    check_depth(text)
    try:
        body = _parse_quietly(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise CallParseError(f"not Python syntax: {reason}") from None
    nodes = body.elts if isinstance(body, (ast.List, ast.Tuple)) else [body]
    calls = []
    for node in nodes:
        if not isinstance(node, ast.Call):
            raise CallParseError(f"a {_kind(node)} stands where a call should")
        calls.append(_call(node, strict, 0))
    return calls


def read_json(text: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of each call in a JSON object or list of objects.

    The name stands under 'name' or 'function', the arguments, an object or its text, under
    'arguments' or 'parameters'.

    Raises:
      CallParseError: anything else, also NaN, infinities and integers of more than 1,024 bits.
    """
    value = _load(text)
    return [_json_call(v) for v in (value if isinstance(value, list) else [value])]


def _parse_quietly(text: str) -> ast.Expression:
    if not _MAY_WARN.search(text):
        return ast.parse(text, mode="eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval")


def _json_call(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]  # {"type": "function", "function": {...}}
    if not isinstance(value, dict):
        raise CallParseError(f"a JSON {type(value).__name__} stands where a call should")
    name = value.get("name", value.get("function"))
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _load(arguments)
    if not isinstance(name, str) or not name:
        raise CallParseError("a call in JSON has no 'name'")
    if not isinstance(arguments, dict):
        raise CallParseError(f"the arguments of {name!r} are not a JSON object")
    return name, arguments


def _load(text: str) -> Any:
    check_depth(text)

    def refuse(constant):
        raise CallParseError(f"{constant} is not a JSON value")

    try:
        return json.loads(
            text,
            parse_constant=refuse,
            parse_int=lambda digits: _bounded(int(digits)),
            parse_float=lambda digits: _bounded(float(digits)),
        )
    except CallParseError:
        raise
    except (ValueError, RecursionError) as error:
        raise CallParseError(f"not JSON: {error}") from None


def _call(node: ast.Call, strict: bool, depth: int) -> tuple[str, dict[str, Any]]:
    name = _dotted(node.func)
    if strict and node.args:
        raise CallParseError(f"{name} has a positional argument; only name=value is read")
    arguments: dict[str, Any] = {}
    for argument in node.keywords:
        if argument.arg is None:
            raise CallParseError(f"{name} has ** among its arguments")
        if strict and argument.arg in arguments:
            raise CallParseError(f"{name} has the argument {argument.arg!r} twice")
        arguments[argument.arg] = _value(argument.value, strict, depth + 1)
    return name, arguments


def _dotted(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise CallParseError(f"a {_kind(node)} is called, not a name")
    return ".".join([node.id, *reversed(parts)])


def _value(node: ast.expr, strict: bool, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CallParseError(f"values nest more than {MAX_DEPTH} deep")
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value(v, strict, depth + 1) for v in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict):
        result = {}
        for key, value in zip(node.keys, node.values, strict=True):
            key = key.id if isinstance(key, ast.Name) else _number(key, depth)
            result[key] = _value(value, strict, depth + 1)
        return result
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call):
        if not node.keywords:
            return _source(node)
        name, arguments = _call(node, strict, depth)
        return {name: arguments}
    if isinstance(node, ast.Subscript):
        return _source(node)
    if isinstance(node, ast.UnaryOp) and not strict and not isinstance(node.operand, ast.Constant):
        raise CallParseError("a sign stands before something that is not a number")
    return _number(node, depth)


def _constant(node: ast.Constant) -> Any:
    if node.value is Ellipsis:
        return "..."
    if node.value is None or isinstance(node.value, (bool, str)):
        return node.value
    if isinstance(node.value, (int, float)):
        return _bounded(node.value)
    raise CallParseError(f"{type(node.value).__name__} values are not read")


def _number(node: ast.expr | None, depth: int) -> Any:
    """Value of signs and whitelisted operators over constants."""
    if depth > MAX_DEPTH:
        raise CallParseError(f"operators nest more than {MAX_DEPTH} deep")
    if isinstance(node, ast.Constant):
        return _constant(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _number(node.operand, depth + 1)
        if not isinstance(value, (int, float)):
            raise CallParseError("a sign stands before something that is not a number")
        return -value if isinstance(node.op, ast.USub) else +value
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return _operate(node.op, _number(node.left, depth + 1), _number(node.right, depth + 1))
    raise CallParseError(f"a {_kind(node)} is not a literal value")


def _operate(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(op, ast.Add) and isinstance(left, str) and isinstance(right, str):
        return left + right  # no longer than the text it stands in
    if not all(isinstance(v, (int, float)) for v in (left, right)):
        raise CallParseError("arithmetic on something that is not a number")
    if isinstance(op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
        # Before computing: 9**9**9 would not end.
        if abs(right) > MAX_INT_BITS or int(left).bit_length() * abs(right) > 2 * MAX_INT_BITS:
            raise CallParseError("a power is too large")
    try:
        return _bounded(ARITHMETIC[type(op)](left, right))
    except (ArithmeticError, ValueError) as error:
        if isinstance(error, CallParseError):
            raise
        raise CallParseError(f"arithmetic failed: {error}") from None


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise CallParseError(f"an integer has more than {MAX_INT_BITS} bits")
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        raise CallParseError("a number is not finite and real")
    return value


def check_depth(text: str) -> None:
    """Refuses deep brackets before a recursive parser sees them; strings are skipped.

    Raises:
      CallParseError: more than MAX_DEPTH.
    """
    if sum(map(text.count, "([{")) <= MAX_DEPTH:
        return
    depth, quote, position = 0, "", 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\":
                position += 1
            elif char == quote or char == "\n":
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
            if depth > MAX_DEPTH:
                raise CallParseError(f"brackets nest more than {MAX_DEPTH} deep")
        elif char in ")]}":
            depth -= 1
        position += 1


def _source(node: ast.expr) -> str:
    try:
        return ast.unparse(node)
    except (RecursionError, ValueError):
        raise CallParseError(f"a {_kind(node)} is too deep") from None


def _kind(node: ast.AST | None) -> str:
    return type(node).__name__ if node is not None else "** entry"
