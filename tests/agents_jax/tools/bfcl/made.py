"""Items made by hand."""

from __future__ import annotations

from agents_jax.tools.bfcl.data import Item, make_item


def function(name: str = "f", required=(), **types) -> dict:
    """A function description in BFCL's form; types such as 'integer' or ['array', 'string']."""
    properties = {}
    for parameter, kind in types.items():
        outer, *inner = [kind] if isinstance(kind, str) else kind
        properties[parameter] = {"type": outer, "description": f"The {parameter}."}
        if inner:
            properties[parameter]["items"] = {"type": inner[0]}
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    return {"name": name, "description": f"Does {name}.", "parameters": parameters}


def item(functions, truth=(), category="simple_python", question="Please.", number=0) -> Item:
    """An item of one user message."""
    entry = {
        "id": f"{category}_{number}",
        "question": [[{"role": "user", "content": question}]],
        "function": list(functions),
    }
    return make_item(entry, category, truth)
