"""Removal of documents that have been seen before, exactly or nearly."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata

import numpy as np

from pangu_jax.data.text.errors import TextDataError

_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")
_CHUNK = 8192


def normalised(text: str) -> str:
    """NFKC, case-folded, runs of white space as one space: what 'exactly the same text' means."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


@dataclasses.dataclass(frozen=True)
class DedupConfig:
    """near_threshold: Jaccard similarity of the shingles from which two documents are the same
    one; 1.0 or more switches near-duplicate removal off (exact removal stays).

    num_permutations: length of a MinHash signature; the similarity read off one has a standard
    error of sqrt(J (1 - J) / num_permutations). shingle_words: words per shingle; text without
    that many words is one shingle. seed: of the permutations.
    """

    near_threshold: float = 0.8
    num_permutations: int = 128
    shingle_words: int = 5
    seed: int = 1

    def __post_init__(self):
        if not 0 < self.near_threshold:
            raise TextDataError(f"near_threshold must be above 0, got {self.near_threshold}.")
        if self.num_permutations < 16 or self.shingle_words < 1:
            raise TextDataError(
                "num_permutations must be at least 16 and shingle_words at least 1, got "
                f"{self.num_permutations} and {self.shingle_words}."
            )


class Deduplicator:
    """Says of one document after the other whether an earlier one was the same.

    Exact: hash of the normalised text. Near: MinHash signatures in a locality-sensitive index
    (Broder 1997; library `datasketch`); a candidate of the index counts only if the similarity
    of the two signatures reaches the threshold. The first of several copies stays.
    Memory: 16 bytes a document for exact, about 10 kB for near removal.

    Raises:
      TextDataError: datasketch is not installed and near removal is on.
    """

    def __init__(self, config: DedupConfig | None = None):
        self.config = config or DedupConfig()
        self._exact: set[bytes] = set()
        self._index = None
        self._signatures: dict[int, object] = {}
        if self.config.near_threshold < 1:
            try:
                import datasketch
            except ImportError as error:
                raise TextDataError(
                    "Near-duplicate removal needs the package datasketch: run pip install -e "
                    "'.[text]' in the checkout, or set near_threshold=1.0."
                ) from error
            # The index is asked for a little less than the threshold, so that bands, which are
            # coarse, miss few pairs; the signatures then decide.
            self._index = datasketch.MinHashLSH(
                threshold=0.9 * self.config.near_threshold,
                num_perm=self.config.num_permutations,
                weights=(0.2, 0.8),
            )
            self._blank = datasketch.MinHash(
                num_perm=self.config.num_permutations, seed=self.config.seed, hashfunc=int
            )

    def seen(self, text: str) -> str | None:
        """'exact' or 'near' if an earlier text was the same, else None; remembers the text."""
        text = normalised(text)
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        if digest in self._exact:
            return "exact"
        self._exact.add(digest)
        if self._index is None:
            return None
        signature = self._blank.copy()
        shingles = shingle_hashes(text, self.config.shingle_words).tolist()
        for start in range(0, len(shingles), _CHUNK):  # it makes a table of shingles x permutations
            signature.update_batch(shingles[start : start + _CHUNK])
        for key in self._index.query(signature):
            if self._signatures[key].jaccard(signature) >= self.config.near_threshold:
                return "near"
        key = len(self._signatures)
        self._index.insert(key, signature)
        self._signatures[key] = signature
        return None


def shingle_hashes(text: str, words: int) -> np.ndarray:
    """Distinct 32-bit hashes of every run of `words` words, uint64 [S], S >= 1."""
    tokens = _WORD.findall(text) or [text]
    codes = np.array([_word_code(token) for token in tokens], np.uint64)
    size = min(words, len(codes))
    mixed = np.zeros(len(codes) - size + 1, np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        for i in range(size):
            mixed = (mixed ^ codes[i : i + len(mixed)]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed >> np.uint64(32))


def _word_code(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")
