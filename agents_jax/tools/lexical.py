"""Ranking of short texts by the words that they share with a query: BM25+ (Lv and Zhai, 2011).

The library is rank_bm25. bm25s is faster on large collections, but starts a JAX backend where it is
imported, which takes an accelerator's memory in every process that runs tools.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

MAX_QUERY_WORDS = 256
"""Distinct words of a query that are looked up; the others are not."""

# Parts of camelCase, of snake_case and of dotted names are words of their own.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")


class MissingLibrary(ImportError):
    """A library of the extra `agents` is not installed."""


def words(text: str) -> list[str]:
    """Words of a text or name, lower case; a plural's 's' is dropped ('countries': 'country')."""
    found = _WORD.findall(_CAMEL.sub(" ", text).lower())
    return [_singular(word) for word in found]


class WordIndex:
    """Texts, found by words.

    Args:
      texts: in an order that settles ties.
    """

    def __init__(self, texts: Sequence[str]):
        try:
            from rank_bm25 import BM25Plus
        except ImportError as error:
            raise MissingLibrary(
                "word search needs rank_bm25; pip install -e '.[agents]'."
            ) from error
        self._size = len(texts)
        split = [words(text) for text in texts]
        # The library divides by the mean length.
        self._index = BM25Plus(split) if any(split) else None

    def __len__(self) -> int:
        return self._size

    def scores(self, query: str) -> np.ndarray:
        """float64 [texts]: 0 where no word of the query occurs, above it elsewhere."""
        if self._index is None:
            return np.zeros(self._size)
        known = [w for w in dict.fromkeys(words(query)) if w in self._index.idf]
        known = known[:MAX_QUERY_WORDS]
        # BM25+ gives every text delta * idf for every word, also for those that lack it.
        floor = self._index.delta * sum(self._index.idf[word] for word in known)
        scores = self._index.get_scores(known) - floor
        return np.where(scores > 1e-9, scores, 0.0)

    def top(self, query: str, most: int) -> list[tuple[int, float]]:
        """(index, score) of the `most` best texts, best first; equal ones in the texts' order.

        Raises:
          ValueError: most is not a whole number above 0.
        """
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"{most!r} results are not allowed; a whole number above 0 is needed.")
        scores = self.scores(query)
        order = np.argsort(-scores, kind="stable")[:most]
        return [(int(index), float(scores[index])) for index in order]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
