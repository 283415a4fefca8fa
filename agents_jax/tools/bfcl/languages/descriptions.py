"""Function descriptions of Java and JavaScript items as models see them: every value is a text."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from agents_jax.tools.bfcl.languages.parsing import Language
from agents_jax.tools.bfcl.languages.values import ARRAY_TYPES

_NAMES: dict[Language, str] = {"java": "Java", "javascript": "JavaScript"}


def described_as_text(function: Mapping[str, Any], language: Language) -> dict[str, Any]:
    """A copy of a BFCL function description in which every parameter is a string.

    What was its type, with the types of an array's elements and of a dict's entries, is told in the
    parameter's description. The leaderboard tells models the same; the wording is ours.
    """
    name = _NAMES[language]
    function = copy.deepcopy(dict(function))
    for schema in function["parameters"]["properties"].values():
        kind = schema["type"]
        if kind in ARRAY_TYPES:
            kind += f" of {schema.pop('items')['type']}"
        what = "any object" if kind == "any" else f"a value of type {kind}"
        note = f" Write it as {name} source text: {what}."
        if "properties" in schema:
            note += f" Entries: {json.dumps(schema.pop('properties'))}."
        schema["description"] = (schema.get("description", "") + note).strip()
        schema["type"] = "string"
        schema.pop("default", None)  # of the type that the schema no longer has
        schema.pop("enum", None)
    return function
