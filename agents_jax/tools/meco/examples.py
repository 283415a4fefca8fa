"""Questions with and without need of a tool, and their division into disjoint roles."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from agents_jax.llm.hashing import digest
from agents_jax.tools.meco.errors import MecoError


@dataclasses.dataclass(frozen=True)
class Example:
    """One question of whether a tool has to be called.

    id: unique within its set. query: the user's words. needed: gold label, True where a call is
    due. tools: function descriptions offered, none for 'no tools given'. history: messages before
    the query, {'role', 'content'} each. links: examples that share one stay in one fold (a swap's
    partner, a function, a question asked twice). source: where it was taken from. template: form of
    the question put to the model, see prompts.py. shown: worked examples shown before the query.
    payload: what judges an answer, such as a BFCL item; no part of the prompt.
    """

    id: str
    query: str
    needed: bool
    tools: tuple[Mapping[str, Any], ...] = ()
    history: tuple[Mapping[str, str], ...] = ()
    links: tuple[Hashable, ...] = ()
    source: str = ""
    template: str = "tools"
    shown: str = ""
    payload: Any = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class ExampleSet:
    """A data set: its name, what it holds in a sentence, and its examples."""

    name: str
    about: str
    examples: tuple[Example, ...]

    def __post_init__(self):
        ids = [example.id for example in self.examples]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise MecoError(f"data set {self.name!r} holds the id {twice!r} twice.")

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> np.ndarray:
        """Gold labels, bool [num_examples]."""
        return np.array([example.needed for example in self.examples], bool)

    def only(self, keep: Iterable[int]) -> ExampleSet:
        """The set of the examples at these places, in that order."""
        return dataclasses.replace(self, examples=tuple(self.examples[i] for i in keep))


def question_key(text: str) -> str:
    """Words of a question, as questions are compared: lower case, no punctuation."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def components(examples: Sequence[Example]) -> np.ndarray:
    """Number of the connected component of each example, int [num_examples].

    Two examples hang together when they share a link or the words of their question.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    keys: dict[Hashable, int] = {}
    rows, columns = [], []
    for row, example in enumerate(examples):
        for key in (("question", question_key(example.query)), *example.links):
            rows.append(row)
            columns.append(len(examples) + keys.setdefault(key, len(keys)))
    size = len(examples) + len(keys)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(examples)]


def assign_folds(examples: Sequence[Example], num_folds: int, seed: int) -> np.ndarray:
    """Fold of each example, int [num_examples]; components stay whole.

    Components go, large ones first and otherwise in random order, to the fold with the fewest
    examples of their rarer label, so that folds are of like size and balance.

    Raises:
      MecoError: fewer than two folds, or fewer components than folds.
    """
    if num_folds < 3:
        raise MecoError(
            f"folds={num_folds} is not enough: probes, thresholds and test need one each (>= 3)."
        )
    labels = np.array([example.needed for example in examples], int)
    groups = components(examples)
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < num_folds:
        raise MecoError(
            f"{len(examples)} examples form {len(names)} independent group(s); {num_folds} folds "
            "need at least as many. Take more examples, or fewer folds."
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    counts = np.zeros((num_folds, 2))
    folds = np.zeros(len(examples), int)
    total = np.maximum(np.bincount(labels, minlength=2), 1)
    for index in order:
        members = groups == names[index]
        own = np.bincount(labels[members], minlength=2)
        load = ((counts + own) / total).max(axis=1) + 1e-3 * counts.sum(axis=1) / total.sum()
        fold = int(np.argmin(load))
        counts[fold] += own
        folds[members] = fold
    return folds


@dataclasses.dataclass(frozen=True)
class Roles:
    """Places of the examples that fit probes, choose thresholds and layer, and test."""

    fit: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def rotations(folds: np.ndarray) -> list[Roles]:
    """One division per fold: it tests, the next one is for validation, the others fit.

    So every example is tested once, by probes and thresholds that never saw it or its links.
    """
    number = int(folds.max()) + 1
    out = []
    for test in range(number):
        validation = (test + 1) % number
        fit = (folds != test) & (folds != validation)
        out.append(
            Roles(np.flatnonzero(fit), np.flatnonzero(folds == validation),
                  np.flatnonzero(folds == test))
        )  # fmt: skip
    return out


def fingerprint_of(examples: Sequence[Example]) -> str:
    """Short hash of what the examples ask, for caches and reports."""
    return digest([[e.id, e.query, e.needed, e.template] for e in examples])[:12]
