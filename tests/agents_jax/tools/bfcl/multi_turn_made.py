"""A file system and conversations made by hand, for BFCL's own environment classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents_jax.tools.bfcl.multi_turn.data import (
    MultiTurnItem,
    function_docs,
    make_multi_turn_item,
)

FILES = {
    "GorillaFileSystem": {
        "root": {
            "work": {
                "type": "directory",
                "contents": {
                    "a.txt": {"type": "file", "content": "one\ntwo"},
                    "b.txt": {"type": "file", "content": "three"},
                    "sub": {"type": "directory", "contents": {}},
                },
            }
        }
    }
}


def files_item(gold: Sequence[Sequence[str]], number: int = 0, **entry: Any) -> MultiTurnItem:
    """An item over FILES with one user message per turn."""
    made = {
        "id": f"multi_turn_base_{number}",
        "question": [[{"role": "user", "content": f"Turn {n}."}] for n in range(len(gold))],
        "initial_config": FILES,
        "involved_classes": ["GorillaFileSystem"],
    }
    return make_multi_turn_item(made | entry, "multi_turn_base", gold, function_docs())
