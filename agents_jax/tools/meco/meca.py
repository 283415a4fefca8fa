"""Sets in the style of MeCa-Tool, built from BFCL and MetaTool.

MeCa itself (7,000 queries, of which five single-turn kinds and their multi-turn twins are reported)
is not public as far as known. The mapping of its kinds to what can be built here is ours:

* `meca_no_tools`: no tools are given; MetaTool's queries, asked in our short wording.
* `meca_with_tools`: a tool is given; it is the query's own (call), or the query needs none
  (MetaTool's negatives beside a function of BFCL).
* `meca_no_relevant`: the query needs a tool; it is the one given (call) or another (no call).
* `..._multi`: each of them after an unrelated turn of conversation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from agents_jax.tools.meco.examples import Example, ExampleSet

# Turns before the query, ours: small talk that neither needs nor names a tool.
_TURNS = (
    ("Good morning!", "Good morning! How can I help you today?"),
    ("Tell me something nice.", "A short walk outside often makes a day better."),
    ("Which is better, tea or coffee?", "Both have their friends; it is a matter of taste."),
    ("Write a line about the sea.", "The sea keeps its own slow time."),
    ("Thanks for your help yesterday.", "You are welcome! I am glad that it was useful."),
    ("What is a synonym of happy?", "Glad, cheerful and joyful are close to it."),
)
MULTI = "_multi"


def no_tools(metatool: ExampleSet, size: int, *, seed: int = 0) -> ExampleSet:
    """`meca_no_tools` from examples that the caller keeps out of other roles."""
    chosen = _balanced(metatool.examples, size, seed)
    return ExampleSet(
        "meca_no_tools", "MeCa-style: no tools given (MetaTool queries, short wording)",
        tuple(
            dataclasses.replace(e, id=f"meca1-{e.id}", template="no_tools", shown="")
            for e in chosen
        ),
    )  # fmt: skip


def with_tools(
    relevance: ExampleSet, metatool: ExampleSet, size: int, *, seed: int = 0
) -> ExampleSet:
    """`meca_with_tools`: own function, or a function beside a query that needs none."""
    rng = np.random.default_rng(seed)
    positive = [e for e in relevance.examples if e.needed]
    idle = [e for e in metatool.examples if not e.needed and len(e.query) <= 300]
    half = min(size // 2, len(positive) // 2, len(idle))
    order = rng.permutation(len(positive))
    own = [positive[i] for i in order[:half]]
    lent = [positive[i] for i in order[half : 2 * half]]
    queries = [idle[i] for i in rng.permutation(len(idle))[:half]]
    examples = [dataclasses.replace(e, id=f"meca2-{e.id}", template="tools") for e in own]
    examples += [
        dataclasses.replace(
            query, id=f"meca2-{query.id}", template="tools", shown="", tools=lender.tools,
            links=(*query.links, *lender.links),
        )
        for query, lender in zip(queries, lent, strict=True)
    ]  # fmt: skip
    return ExampleSet("meca_with_tools", "MeCa-style: tools given, needed or not", tuple(examples))


def no_relevant(swap: ExampleSet, size: int, *, seed: int = 0) -> ExampleSet:
    """`meca_no_relevant`: the given function is the query's own or another; pairs stay whole."""
    pairs: dict[object, list[Example]] = {}
    for example in swap.examples:
        pairs.setdefault(example.links[0], []).append(example)
    groups = list(pairs.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    chosen = [e for i in order for e in groups[i]][: size - size % 4]
    return ExampleSet(
        "meca_no_relevant", "MeCa-style: the given tool is relevant or not",
        tuple(dataclasses.replace(e, id=f"meca3-{e.id}") for e in chosen),
    )  # fmt: skip


def multi_turn(data: ExampleSet, *, seed: int = 0) -> ExampleSet:
    """The same queries after an unrelated turn, which says nothing about the label.

    A query that stands under both labels has one turn for both; of the others, each label has every
    turn equally often. (By position in the set a turn would tell labels that alternate.)
    """
    labels: dict[str, set[bool]] = {}
    for example in data.examples:
        labels.setdefault(example.query, set()).add(example.needed)
    rng = np.random.default_rng(seed)
    turns: dict[str, tuple[str, str]] = {}
    for kind in ({True, False}, {True}, {False}):
        queries = [query for query, found in labels.items() if found == kind]
        for place, index in enumerate(rng.permutation(len(queries))):
            turns[queries[index]] = _TURNS[place % len(_TURNS)]
    examples = []
    for example in data.examples:
        asked, answered = turns[example.query]
        history = ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
        examples.append(
            dataclasses.replace(example, id=f"{example.id}{MULTI}", history=history)
        )  # fmt: skip
    return ExampleSet(data.name + MULTI, data.about + ", after an unrelated turn", tuple(examples))


def _balanced(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
    rng = np.random.default_rng(seed)
    halves = [[e for e in examples if e.needed is needed] for needed in (True, False)]
    count = min(size // 2, *map(len, halves))
    return [half[i] for half in halves for i in rng.permutation(len(half))[:count]]
