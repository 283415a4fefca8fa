"""Values out of the texts in which Java and JavaScript write them, as BFCL reads them.

Written anew after the behaviour of `bfcl_eval.eval_checker.ast_eval.type_convertor`, version
2026.3.23: a text that does not have the form of its type stays a text, so that it is compared as
the name of a variable. The official patterns take exponential time on some texts; here no text
takes more than a few passes for each of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents_jax.tools.bfcl.languages.java import JAVA_TYPES, java_value
from agents_jax.tools.bfcl.languages.javascript import JAVASCRIPT_TYPES, javascript_value
from agents_jax.tools.bfcl.languages.parsing import Language

VALUE_TYPES: dict[Language, dict[str, type]] = {"java": JAVA_TYPES, "javascript": JAVASCRIPT_TYPES}
"""Types of function descriptions by language, and the Python types of their values."""
ARRAY_TYPES = ("Array", "ArrayList", "array")
"""Types whose elements have a type of their own, under 'items'."""


def read_value(text: str, schema: Mapping[str, Any], language: Language) -> Any:
    """The value of an argument's text.

    Args:
      schema: of the parameter, in BFCL's form: 'type' and, for arrays, 'items'.

    Returns:
      bool, int, float, str, or lists and dicts of them; the text itself where it does not have the
      form of its type.

    Raises:
      ValueError: a type that the language's rules do not have.
    """
    kind = schema.get("type")
    inner = schema["items"].get("type") if kind in ARRAY_TYPES and "items" in schema else None
    for name in (kind, inner):
        if name is not None and name not in VALUE_TYPES[language]:
            raise ValueError(
                f"schema type {name!r} is unknown in {language}; "
                f"allowed: {', '.join(VALUE_TYPES[language])}."
            )
    read = java_value if language == "java" else javascript_value
    return read(text, kind, inner)
