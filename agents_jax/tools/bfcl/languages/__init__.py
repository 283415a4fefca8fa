"""Answers written as Java and JavaScript: parsing, values, rendering, descriptions."""

from agents_jax.tools.bfcl.languages.descriptions import described_as_text
from agents_jax.tools.bfcl.languages.parsing import LANGUAGES, Language, parse_language_calls
from agents_jax.tools.bfcl.languages.render import render_language_calls
from agents_jax.tools.bfcl.languages.values import ARRAY_TYPES, VALUE_TYPES, read_value

__all__ = [
    "ARRAY_TYPES",
    "LANGUAGES",
    "Language",
    "VALUE_TYPES",
    "described_as_text",
    "parse_language_calls",
    "read_value",
    "render_language_calls",
]
