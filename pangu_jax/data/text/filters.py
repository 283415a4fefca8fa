"""Rules that leave documents out, each with its count.

The paper says that rules are used and not which (section 3.1.2); these are the common ones of
public pre-training corpora (length, symbols, repetition, line shape), with thresholds of our own:
reconstructed.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping

from pangu_jax.data.text.document import Document
from pangu_jax.data.text.errors import TextDataError


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Limits; a document outside one of them is left out, the first one that it breaks is counted.

    Attributes:
      min_chars, max_chars: length.
      min_alpha: letters among the characters that are not white space, at least.
      max_symbols: characters that are neither letter, digit, white space nor one of .,;:'"!?-()
        among all characters, at most.
      min_mean_line, max_mean_line: mean length of the lines that are not blank.
      max_line: longest line.
      max_repeated_lines: share of lines (not blank) that have occurred before in the document.
      max_top_ngram: share of the words covered by the most frequent run of `ngram` words; looked
        at from 50 words on.
      max_mean_word: mean length of what white space separates, at most: lists of addresses, hashes
        and tables of numbers are longer than prose.
      min_distinct_words: distinct words per word over the first 1,000 words.
    """

    min_chars: int = 100
    max_chars: int = 5_000_000
    min_alpha: float = 0.5
    max_symbols: float = 0.25
    min_mean_line: float = 10.0
    max_mean_line: float = 20_000.0
    max_line: int = 100_000
    max_repeated_lines: float = 0.4
    max_top_ngram: float = 0.2
    ngram: int = 4
    max_mean_word: float = 12.0
    min_distinct_words: float = 0.05

    def __post_init__(self):
        if not 0 <= self.min_chars <= self.max_chars:
            raise TextDataError(
                f"min_chars={self.min_chars} and max_chars={self.max_chars} leave no length over."
            )
        if self.ngram < 1:
            raise TextDataError(f"ngram must be at least 1, got {self.ngram}.")
        for name in ("min_alpha", "max_symbols", "max_repeated_lines", "max_top_ngram"):
            if not 0 <= getattr(self, name) <= 1:
                raise TextDataError(f"{name} is a share in 0..1, got {getattr(self, name)}.")


# Code has short lines, many symbols and repeated ones ('else:'); requests may be one short line.
DEFAULT_FILTERS: dict[str, FilterConfig] = {
    "code": FilterConfig(
        min_alpha=0.35, max_symbols=0.4, min_mean_line=5, max_mean_line=300, max_line=2_000,
        max_repeated_lines=0.6, max_top_ngram=0.3, max_mean_word=30.0,
    ),
    "math": FilterConfig(min_alpha=0.2, max_symbols=0.5, min_mean_line=3, max_mean_word=30.0),
    "instruction": FilterConfig(
        min_chars=20, max_symbols=0.4, max_repeated_lines=0.7, max_mean_word=30.0
    ),
    # Written without spaces between words.
    "chinese": FilterConfig(
        min_chars=30, min_mean_line=4, max_symbols=0.35, max_top_ngram=1.0, max_mean_word=100_000.0
    ),
    "multilingual": FilterConfig(max_mean_word=100_000.0),
}  # fmt: skip

FILTERS = ("short", "long", "alpha", "symbols", "line_length", "word_length", "repeated_lines",
           "repeated_words", "few_words")  # fmt: skip
_SYMBOL = re.compile(r"[^\w\s.,;:'\"!?()-]")
_WORD = re.compile(r"\w+")


def broken_rule(document: Document, config: FilterConfig) -> str | None:
    """The name (one of FILTERS) of the first limit that the document breaks, or None."""
    text = document.text
    if len(text) < config.min_chars:
        return "short"
    if len(text) > config.max_chars:
        return "long"
    pieces = text.split()
    solid = sum(map(len, pieces))
    if sum(map(str.isalpha, text)) < config.min_alpha * max(solid, 1):
        return "alpha"
    if len(_SYMBOL.findall(text)) > config.max_symbols * len(text):
        return "symbols"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    mean = sum(map(len, lines)) / max(len(lines), 1)
    longest = max(map(len, lines), default=0)
    if not config.min_mean_line <= mean <= config.max_mean_line or longest > config.max_line:
        return "line_length"
    if solid > config.max_mean_word * max(len(pieces), 1):
        return "word_length"
    if len(lines) - len(set(lines)) > config.max_repeated_lines * len(lines):
        return "repeated_lines"
    words = _WORD.findall(text.lower())
    if len(words) >= 50:
        grams = collections.Counter(zip(*(words[i:] for i in range(config.ngram)), strict=False))
        (_, most), *_ = grams.most_common(1) or [((), 0)]
        if most > 1 and most * config.ngram > config.max_top_ngram * len(words):
            return "repeated_words"
    head = words[:1000]
    if len(set(head)) < config.min_distinct_words * len(head):
        return "few_words"
    return None


def filters_for(domain: str, overrides: Mapping[str, FilterConfig] | None = None) -> FilterConfig:
    """Limits of a domain: the override, else DEFAULT_FILTERS, else `FilterConfig()`."""
    table = {**DEFAULT_FILTERS, **(overrides or {})}
    return table.get(domain, FilterConfig())
