"""MetaTool's Task 1, awareness of tool usage: 520 queries that need a tool and 520 that do not.

Source: Huang et al., MetaTool Benchmark, ICLR 2024 (data MIT). The benchmark's prompt, reasons and
worked examples stand in its file and are read from there. 'Without context' leaves the worked
examples out; that this is the paper's pair of settings is inferred, not known.
"""

from __future__ import annotations

import json
import pathlib
import re

from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.examples import Example, ExampleSet

CITATION = (
    "Yue Huang et al. MetaTool Benchmark for Large Language Models: Deciding Whether to Use Tools "
    "and Which to Use. ICLR 2024. https://github.com/HowieHwong/MetaTool (MIT)"
)
_EXAMPLES = "Here are some examples:"
_FIELDS = {"thought_prompt": str, "label": str, "query": str}


def load_metatool(path: str, *, context: bool = False) -> ExampleSet:
    """All of Task 1 as an example set.

    Args:
      path: of Task1.json. context: show the file's five worked examples before the query.

    Raises:
      MecoError: the file is absent, no JSON list, or an entry lacks a field.
    """
    file = pathlib.Path(path)
    if not path or not file.exists():
        raise MecoError(
            f"data.metatool={path!r} is not there. Take dataset/tmp_dataset/Task1.json of "
            "github.com/HowieHwong/MetaTool and name it with --config.data.metatool=FILE, or leave "
            "the sets that begin with 'metatool' out of --config.sets."
        )
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise MecoError(f"data.metatool={path!r} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list):
        raise MecoError(f"data.metatool={path!r} must hold a list of entries.")
    examples = [_example(path, index, entry, context) for index, entry in enumerate(entries)]
    name = "metatool_context" if context else "metatool"
    return ExampleSet(name, f"MetaTool Task 1, {'with' if context else 'without'} worked examples",
                      tuple(examples))  # fmt: skip


def _example(path: str, index: int, entry, context: bool) -> Example:
    for field, kind in _FIELDS.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
            raise MecoError(f"data.metatool={path!r}, entry {index}: {field!r} must be a text.")
    if entry["label"] not in ("positive", "negative"):
        raise MecoError(
            f"data.metatool={path!r}, entry {index}: label={entry['label']!r}; allowed: positive, "
            "negative."
        )
    before, found, after = entry["thought_prompt"].partition(_EXAMPLES)
    shown = before.rstrip()
    if context and found:
        shown = re.sub(r"\s*answer:\s*$", "", entry["thought_prompt"])
    tool = entry.get("tool")
    return Example(
        id=f"metatool-{index}{'-context' if context else ''}",
        query=entry["query"],
        needed=entry["label"] == "positive",
        # A tool's queries are alike; they stay together.
        links=(("tool", tool),) if isinstance(tool, str) else (),
        source="metatool",
        template="metatool",
        shown=shown,
    )
