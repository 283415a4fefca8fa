"""A calculator: arithmetic read from a syntax tree, with bounded work; nothing is evaluated."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.literals import ARITHMETIC

MAX_CHARS = 500
"""Longest expression."""
MAX_DEPTH = 50
"""Deepest nesting of operators and brackets."""
MAX_BITS = 4096
"""Largest integer that is computed, in bits: about 1,200 digits."""
_MAX_FACTORIAL = 500

CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
# name: (function, fewest arguments, most arguments)
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "sqrt": (math.sqrt, 1, 1),
    "cbrt": (math.cbrt, 1, 1),
    "abs": (abs, 1, 1),
    "round": (round, 1, 2),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "min": (min, 1, 50),
    "max": (max, 1, 50),
    "exp": (math.exp, 1, 1),
    "ln": (math.log, 1, 1),
    "log": (math.log, 1, 2),
    "log10": (math.log10, 1, 1),
    "log2": (math.log2, 1, 1),
    "sin": (math.sin, 1, 1),
    "cos": (math.cos, 1, 1),
    "tan": (math.tan, 1, 1),
    "asin": (math.asin, 1, 1),
    "acos": (math.acos, 1, 1),
    "atan": (math.atan, 1, 1),
    "radians": (math.radians, 1, 1),
    "degrees": (math.degrees, 1, 1),
    "gcd": (math.gcd, 1, 50),
    "lcm": (math.lcm, 1, 50),
    "factorial": (math.factorial, 1, 1),
    "comb": (math.comb, 2, 2),
    "perm": (math.perm, 2, 2),
}
_WHOLE = ("factorial", "comb", "perm")
# `^` is a power here; as Python's operator it would bind less than `+`.
_SIGNS = str.maketrans({"^": "**", "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})

DEFINITION = ToolDefinition(
    "calculator",
    "Computes an arithmetic expression: + - * / // % ** (or ^) and brackets; "
    f"{', '.join(FUNCTIONS)}; pi, e, tau. Angles are in radians. % is the remainder.",
    {
        "type": "object",
        "properties": {
            "expression": {
                "type": "string",
                "description": "For example (3 + 4) * sqrt(2) or 17 % 5.",
                "minLength": 1,
                "maxLength": MAX_CHARS,
            }
        },
        "required": ["expression"],
    },
)


class CalculationError(ValueError):
    """An expression that is not computed; the message says why."""


def calculate(expression: str) -> str:
    """The value of an expression as text; floats with 15 significant digits.

    Raises:
      CalculationError: anything that is no arithmetic, or has no finite real value within bounds.
    """
    value = evaluate(expression)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def evaluate(expression: str) -> int | float:
    """The value of an expression; whole numbers stay exact, / always gives a float.

    Raises:
      CalculationError: see `calculate`.
    """
    if len(expression) > MAX_CHARS:
        raise CalculationError(
            f"the expression has {len(expression)} characters; at most {MAX_CHARS} are taken."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as a number run into a word
            tree = ast.parse(expression.translate(_SIGNS).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CalculationError(f"not an expression: {getattr(error, 'msg', error)}.") from None
    return _value(tree.body, 0)


def _value(node: ast.expr, depth: int) -> int | float:
    if depth > MAX_DEPTH:
        raise CalculationError(f"nested more than {MAX_DEPTH} deep.")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.Name):
        if node.id in CONSTANTS:
            return CONSTANTS[node.id]
        raise CalculationError(f"{node.id!r} is not known; allowed: {', '.join(CONSTANTS)}.")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        left, right = _value(node.left, depth + 1), _value(node.right, depth + 1)
        function = ARITHMETIC[type(node.op)]
        if function is operator.pow:
            _check_power(left, right)
        return _compute(function, left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node, depth)
    raise CalculationError(
        f"{type(node).__name__} is no arithmetic; allowed: numbers, + - * / // % **, brackets, "
        f"{', '.join(CONSTANTS)} and {', '.join(FUNCTIONS)}."
    )


def _call(node: ast.Call, depth: int) -> int | float:
    name = node.func.id
    if name not in FUNCTIONS:
        raise CalculationError(f"{name!r} is not known; allowed: {', '.join(FUNCTIONS)}.")
    function, fewest, most = FUNCTIONS[name]
    if not fewest <= len(node.args) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise CalculationError(f"{name} takes {wanted} arguments; {len(node.args)} are given.")
    values = [_value(argument, depth + 1) for argument in node.args]
    if name in _WHOLE and any(isinstance(v, int) and abs(v) > _MAX_FACTORIAL for v in values):
        raise CalculationError(f"{name} takes whole numbers up to {_MAX_FACTORIAL}.")
    if name == "round" and len(values) == 2 and abs(values[1]) > 300:
        raise CalculationError("round takes up to 300 digits.")
    return _compute(function, *values)


def _check_power(base: int | float, exponent: int | float) -> None:
    # Before computing: 9**9**9 would not end.
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        if base.bit_length() * abs(exponent) > 2 * MAX_BITS:
            raise CalculationError("the power is too large.")


def _compute(function: Callable[..., Any], *values: int | float) -> int | float:
    try:
        return _bounded(function(*values))
    except CalculationError:
        raise
    except (ArithmeticError, ValueError, TypeError) as error:
        raise CalculationError(f"{error}.") from None


def _bounded(value: Any) -> int | float:
    if isinstance(value, int) and value.bit_length() <= MAX_BITS:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int):
        raise CalculationError(f"a whole number has more than {MAX_BITS} bits.")
    raise CalculationError("the value is not a finite real number.")
