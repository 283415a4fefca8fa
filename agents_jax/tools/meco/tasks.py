"""The study's data sets by name, and the queries of the contrast, which are in no other set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from agents_jax.llm.interface import LanguageModel
from agents_jax.tools.meco import meca, own_answers
from agents_jax.tools.meco.bfcl_sets import load_relevance, load_swap
from agents_jax.tools.meco.config import MecoConfig
from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.examples import Example, ExampleSet, components
from agents_jax.tools.meco.matching import matched
from agents_jax.tools.meco.metatool import load_metatool


class Tasks:
    """Builds each set once, when it is asked for.

    Args:
      model: answers the questions of sets about its own ability; None where none is asked for.

    Attributes:
      balance: per set of own ability and kind of question (right, asked).
    """

    def __init__(self, config: MecoConfig, model: LanguageModel | None = None):
        self._config, self._data, self._model = config, config.data, model
        self.balance: dict[str, dict[str, tuple[int, int]]] = {}
        self._built: dict[str, ExampleSet] = {}

    def missing(self, name: str) -> str:
        """Why a set cannot be built here, '' where it can."""
        if name in ("metatool", "metatool_matched", "metatool_context") or name.startswith(
            ("meca_no_tools", "meca_with_tools")
        ):
            try:
                self._metatool  # noqa: B018 (reads the file)
            except MecoError as error:
                return str(error)
        return ""

    def contrast(self) -> tuple[Example, ...]:
        """Queries of the contrast, half of each label, asked in the short wording without tools.

        MetaTool's where they are at hand, otherwise BFCL's.
        """
        return tuple(
            dataclasses.replace(
                e, id=f"contrast-{e.id}", template="no_tools" if not e.tools else "tools",
                shown="", history=(),
            )
            for e in self._parts[0].examples
        )  # fmt: skip

    def get(self, name: str) -> ExampleSet:
        """The set of that name.

        Raises:
          MecoError: it cannot be built here; the text says why.
        """
        if name not in self._built:
            makers: dict[str, Callable[[], ExampleSet]] = {
                "metatool": lambda: self._sample(self._rest, name),
                "metatool_matched": lambda: self._matched(
                    self._rest, name, self._data.caliper_metatool
                ),
                "metatool_context": lambda: self._with_context(name),
                "relevance": lambda: self._sample(self._relevance, name),
                "relevance_matched": lambda: self._matched(
                    self._relevance, name, self._data.caliper_relevance
                ),
                "swap": lambda: self._whole_groups(self._swap, name),
                "meca_no_tools": lambda: meca.no_tools(
                    self._parts[1], self._size(name, 120), seed=self._data.seed
                ),
                "meca_with_tools": lambda: meca.with_tools(
                    self._relevance, self._rest, self._size(name, 120), seed=self._data.seed
                ),
                "meca_no_relevant": lambda: meca.no_relevant(
                    self._swap, self._size(name, 120), seed=self._data.seed
                ),
                "own_arithmetic": lambda: self._own(
                    name, own_answers.arithmetic(
                        self._data.per_kind, digits=self._data.digits, seed=self._data.seed
                    ),
                    "calculator",
                ),
                "retrieval": lambda: self._own(name, own_answers.facts(), "retrieval"),
            }  # fmt: skip
            if name.endswith(meca.MULTI):
                made = meca.multi_turn(self.get(name.removesuffix(meca.MULTI)))
            else:
                made = makers[name]()
            self._built[name] = dataclasses.replace(made, name=name)
        return self._built[name]

    # ------------------------------------------------------------------ sources

    @functools.cached_property
    def _metatool(self) -> ExampleSet:
        data = load_metatool(self._data.metatool)
        short = [
            i for i, e in enumerate(data.examples) if len(e.query) <= self._data.max_query_chars
        ]
        return data.only(short)

    @functools.cached_property
    def _relevance(self) -> ExampleSet:
        data = load_relevance(self._data.max_chars)
        if self._from_bfcl:
            return self._without(data, self._parts[0])
        return data

    @functools.cached_property
    def _swap(self) -> ExampleSet:
        data = load_swap(
            self._data.max_chars, max_gap=self._data.swap_max_gap, seed=self._data.seed
        )
        if self._from_bfcl:
            return self._without(data, self._parts[0])
        return data

    @functools.cached_property
    def _from_bfcl(self) -> bool:
        return bool(self.missing("metatool"))

    @functools.cached_property
    def _parts(self) -> tuple[ExampleSet, ExampleSet, ExampleSet]:
        """Contrast, meca_no_tools and the rest: no tool and no query is in two of them."""
        source = load_relevance(self._data.max_chars) if self._from_bfcl else self._metatool
        groups = components(source.examples)
        order = np.random.default_rng(self._data.seed).permutation(np.unique(groups))
        position = {int(group): place for place, group in enumerate(order)}
        by_order = sorted(range(len(source)), key=lambda i: position[int(groups[i])])
        contrast = self._first(source, groups, by_order, self._config.contrast.num_queries)
        taken = {int(groups[i]) for i in contrast}
        left = [i for i in by_order if int(groups[i]) not in taken]
        own: list[int] = []
        if not self._from_bfcl:
            own = self._first(source, groups, left, self._size("meca_no_tools", 120))
            used = {int(groups[i]) for i in own}
            left = [i for i in left if int(groups[i]) not in used]
        return source.only(contrast), source.only(own), source.only(sorted(left))

    @property
    def _rest(self) -> ExampleSet:
        if self._from_bfcl:
            raise MecoError(self.missing("metatool"))
        return self._parts[2]

    @staticmethod
    def _first(
        source: ExampleSet, groups: np.ndarray, order: Sequence[int], size: int
    ) -> list[int]:
        """Half of each label, in order, one of each group at most."""
        chosen: list[int] = []
        counts, seen = [0, 0], set()
        for index in order:
            label = int(source.examples[index].needed)
            if counts[label] < size // 2 and int(groups[index]) not in seen:
                counts[label] += 1
                seen.add(int(groups[index]))
                chosen.append(index)
        return chosen

    @staticmethod
    def _without(data: ExampleSet, other: ExampleSet) -> ExampleSet:
        joined = components((*data.examples, *other.examples))
        out = set(joined[len(data) :].tolist())
        return data.only(i for i in range(len(data)) if int(joined[i]) not in out)

    # ------------------------------------------------------------------ ways to cut a set

    def _size(self, name: str, otherwise: int) -> int:
        return self._data.size(name) or otherwise

    def _sample(self, data: ExampleSet, name: str) -> ExampleSet:
        """A random part with as many of either label."""
        labels = data.labels
        rng = np.random.default_rng(self._data.seed)
        count = min(int(labels.sum()), int((~labels).sum()))
        if self._data.size(name):
            count = min(count, self._data.size(name) // 2)
        halves = [rng.permutation(np.flatnonzero(labels == v))[:count] for v in (True, False)]
        return data.only(sorted(np.concatenate(halves)))

    def _matched(self, data: ExampleSet, name: str, caliper: float) -> ExampleSet:
        made = matched(data, caliper=caliper, seed=self._data.seed)
        about = f"{data.about}; matched in length, overlap and TF-IDF"
        return dataclasses.replace(self._sample(made, name), about=about)

    def _whole_groups(self, data: ExampleSet, name: str) -> ExampleSet:
        """Pairs of a swap, four examples each, stay whole."""
        size = self._data.size(name) or len(data)
        return data.only(range(min(len(data), size - size % 4)))

    def _with_context(self, name: str) -> ExampleSet:
        queries = {e.query for e in self._rest.examples}
        data = load_metatool(self._data.metatool, context=True)
        kept = [i for i, e in enumerate(data.examples) if e.query in queries]
        return self._sample(data.only(kept), name)

    def _own(self, name: str, questions, template: str) -> ExampleSet:
        if self._model is None:
            raise MecoError(
                f"data set {name!r} needs the model, whose own answers make its labels."
            )
        replies = own_answers.ask(self._model, questions)
        made, balance = own_answers.own_ability(
            name, questions, replies, template=template, limit=self._data.size(name),
            seed=self._data.seed,
        )  # fmt: skip
        self.balance[name] = balance
        return made
