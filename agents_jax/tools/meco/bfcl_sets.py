"""Relevance of the offered function, from BFCL: real irrelevance, and functions swapped."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from agents_jax.tools.bfcl.data import Item, load
from agents_jax.tools.bfcl.gold import is_solvable
from agents_jax.tools.meco import texts
from agents_jax.tools.meco.examples import Example, ExampleSet, question_key


def _usable(items: Sequence[Item], max_chars: int) -> list[Item]:
    """Items of one user message and one function, short enough, each question once."""
    seen, out = set(), []
    for item in items:
        if [m["role"] for m in item.messages] != ["user"] or len(item.functions) != 1:
            continue
        query = item.messages[0]["content"]
        size = len(query) + len(json.dumps(item.functions, separators=(",", ":"), default=list))
        key = question_key(query)
        if size > max_chars or key in seen or not is_solvable(item):
            continue
        seen.add(key)
        out.append(item)
    return out


def _example(item: Item, needed: bool, **changes) -> Example:
    query = item.messages[0]["content"]
    source = "live" if item.category.startswith("live") else "non_live"
    links = tuple(("function", function["name"]) for function in item.functions)
    values = {"id": item.id, "tools": tuple(item.functions), "links": links, "payload": item}
    return Example(query=query, needed=needed, source=source, **(values | changes))


def load_relevance(max_chars: int = 700) -> ExampleSet:
    """Own function offered (simple_python, live_simple) against functions that cannot answer
    (irrelevance, live_irrelevance): M2 of the specification.

    Args:
      max_chars: of query and function together; longer ones are left out, so that a run on a CPU
        ends. The live irrelevance items are the longest.
    """
    positive = _usable(load(("simple_python", "live_simple")), max_chars)
    asked = {question_key(item.messages[0]["content"]) for item in positive}
    negative = [
        item
        for item in _usable(load(("irrelevance", "live_irrelevance")), max_chars)
        if question_key(item.messages[0]["content"]) not in asked
    ]
    examples = [_example(i, True) for i in positive] + [_example(i, False) for i in negative]
    return ExampleSet("relevance", "BFCL: own function against real irrelevance", tuple(examples))


def load_swap(
    max_chars: int = 700, *, max_likeness: float = 0.6, max_gap: float = 0.15, seed: int = 0
) -> ExampleSet:
    """Each query with its own function and with another query's: M3 of the specification.

    Partners exchange functions, so that every query and every function stands under both labels
    and what sees one of them alone is at chance by construction; partners stay in one fold. The
    pair is chosen whose other function overlaps most with the query. A pair is kept only where
    overlap changes little, and in either direction equally often as far as possible.

    Args:
      max_likeness: greatest Jaccard index of the words of two functions; more alike ones may both
        answer the query, which would make the label wrong.
      max_gap: greatest difference of the two overlaps, summed over the pair's two queries.
      seed: order in which pairs are looked at.
    """
    items = _usable(load(("simple_python", "live_simple")), max_chars)
    tools = [texts.words(texts.tool_text(item.functions)) for item in items]
    asked = [texts.words(item.messages[0]["content"]) for item in items]
    share = np.array([[len(q & t) / max(len(q), 1) for t in tools] for q in asked])
    own = np.diag(share)
    # Gain of overlap for both partners, from the own function to the partner's.
    change = (share - own[:, None]) + (share.T - own[None])
    pairs, used = [], set()
    order = np.random.default_rng(seed).permutation(len(items))
    balance = 0.0
    for first in order:
        if first in used:
            continue
        best = None
        for second in order:
            if second == first or second in used:
                continue
            if items[first].called_names == items[second].called_names:
                continue
            likeness = len(tools[first] & tools[second]) / max(len(tools[first] | tools[second]), 1)
            if likeness > max_likeness or abs(change[first, second]) > max_gap:
                continue
            # Overlap high for both, and a change that brings the sum of all back to zero.
            value = share[first, second] + share[second, first]
            value -= abs(balance + change[first, second])
            if best is None or value > best[0]:
                best = (value, second)
        if best is not None:
            used |= {first, best[1]}
            balance += change[first, best[1]]
            pairs.append((first, best[1]))
    examples = []
    for first, second in pairs:
        for one, other in ((first, second), (second, first)):
            name = ("pair", items[first].id)
            partner = items[other]
            both = tuple(("function", i.functions[0]["name"]) for i in (items[one], partner))
            examples.append(_example(items[one], True, links=(name, *both)))
            examples.append(
                _example(items[one], False, id=f"{items[one].id}-swapped", links=(name, *both),
                         tools=tuple(partner.functions))
            )  # fmt: skip
    return ExampleSet(
        "swap", "BFCL: own function against another's with like overlap", tuple(examples)
    )
