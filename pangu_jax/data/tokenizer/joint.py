"""Quota-balanced BPE: one list of merges learned on all domains at once.

Not the paper's procedure (which analyses the domains independently, see `merging.py`) but another
answer to its aim, a vocabulary that no domain dominates. Plain BPE merges the pair that is most
frequent overall; here the domain that is furthest behind its quota chooses: its most frequent
pair, counted in words as all merges so far have cut them, is merged in all domains. The merges are
those of an ordinary BPE, learned in the order in which they are applied, so there is nothing to
reconcile afterwards and no token that its own text does not reach.

Plain Python over word counts: minutes for tens of thousands of tokens, not for 150,000.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Iterable, Mapping

from pangu_jax.data.tokenizer.bpe import BpeConfig, Merge, word_counts
from pangu_jax.data.tokenizer.errors import TokenizerError
from pangu_jax.data.tokenizer.merging import MergedVocabulary, quota_counts


def joint_vocabulary(
    texts: Mapping[str, Iterable[str]], quotas: Mapping[str, float], config: BpeConfig
) -> MergedVocabulary:
    """Exactly config.vocab_size - config.num_fixed tokens, each domain with its share of them.

    Args:
      texts: by domain, texts to learn from.
      quotas: by domain, its share of the learned tokens; the shares sum to 1.

    Raises:
      TokenizerError: quotas that do not fit, or a domain that has no pair left that occurs
        min_frequency times before its quota is reached.
    """
    targets = quota_counts(quotas, config.vocab_size - config.num_fixed)
    counts = {}
    for domain in sorted(texts):
        try:
            counts[domain] = word_counts(texts[domain], config)
        except TokenizerError as error:
            raise TokenizerError(f"Domain {domain!r}: {error}") from error
    words = _Words(counts, config)
    owner: dict[str, str] = {}
    owned = dict.fromkeys(targets, 0)
    merges: dict[Merge, None] = {}  # a pair can come up again; its first rank counts
    while len(owner) < sum(targets.values()):
        domain = min(
            (d for d in targets if owned[d] < targets[d]), key=lambda d: (owned[d] / targets[d], d)
        )
        pair = words.most_frequent(domain)
        if pair is None:
            raise TokenizerError(
                f"Domain {domain!r} has text for only {owned[domain]} tokens of its own, its quota "
                f"is {targets[domain]}; give it more text, a smaller share, or ask for a smaller "
                "vocab_size."
            )
        words.merge(pair)
        merges.setdefault(pair)
        token = pair[0] + pair[1]
        if token not in owner:  # else it can be built in one more way, at no cost
            owner[token] = domain
            owned[domain] += 1
    return MergedVocabulary(tuple(owner), tuple(merges), tuple(owner.values()), ())


class _Words:
    """Distinct words of all domains as lists of tokens, with the pairs in them counted."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]], config: BpeConfig):
        self._min, self._longest = config.min_frequency, config.max_token_length
        totals = collections.Counter()
        for by_word in counts.values():
            totals.update(by_word)
        # Also words that occur once: without spaces a word is a clause, and most occur once.
        words = sorted(word for word in totals if len(word) > 1)
        self._tokens = [list(word) for word in words]
        self._times = [
            [(d, by_word[word]) for d, by_word in counts.items() if by_word.get(word)]
            for word in words
        ]
        self._pairs = {domain: collections.Counter() for domain in counts}
        self._where: dict[Merge, set[int]] = collections.defaultdict(set)
        for number, tokens in enumerate(self._tokens):
            for pair in zip(tokens, tokens[1:], strict=False):
                self._where[pair].add(number)
                for domain, times in self._times[number]:
                    self._pairs[domain][pair] += times
        # Entries may be out of date; they are checked when they come up.
        self._heaps = {d: [(-n, p) for p, n in pairs.items()] for d, pairs in self._pairs.items()}
        for heap in self._heaps.values():
            heapq.heapify(heap)

    def most_frequent(self, domain: str) -> Merge | None:
        """Pair with the highest count in a domain, the first by name among equals."""
        heap, pairs = self._heaps[domain], self._pairs[domain]
        while heap:
            count, pair = heap[0]
            now = pairs[pair]
            if now == -count and now >= self._min:
                if len(pair[0]) + len(pair[1]) <= self._longest:
                    return pair
                now = 0
            heapq.heappop(heap)
            if now >= self._min:
                heapq.heappush(heap, (-now, pair))
        return None

    def merge(self, pair: Merge) -> None:
        """Puts the pair together in every word and counts anew around it."""
        changed: dict[str, set[Merge]] = {domain: set() for domain in self._pairs}
        for number in self._where.pop(pair):
            # Nothing changes if an earlier merge took one of the two away.
            for other, delta in _merge_in(self._tokens[number], pair).items():
                if delta > 0:
                    self._where[other].add(number)
                if delta:
                    for domain, times in self._times[number]:
                        self._pairs[domain][other] += delta * times
                        changed[domain].add(other)
        for domain, others in changed.items():
            pairs, heap = self._pairs[domain], self._heaps[domain]
            for other in others:
                if pairs[other] > 0:
                    heapq.heappush(heap, (-pairs[other], other))
                else:
                    del pairs[other]


def _merge_in(tokens: list[str], pair: Merge) -> dict[Merge, int]:
    """Merges in place, from left to right; how many more (fewer) of each pair there are then.

    Work in proportion to the places that change, and a search at the speed of `list.index`: words
    of a text without spaces are long.
    """
    left, right = pair
    merged = left + right
    change: dict[Merge, int] = collections.defaultdict(int)
    at = 0
    while True:
        try:
            at = tokens.index(left, at, -1)
        except ValueError:
            return change
        if tokens[at + 1] == right:
            change[pair] -= 1
            if at:
                change[tokens[at - 1], left] -= 1
                change[tokens[at - 1], merged] += 1
            if at + 2 < len(tokens):
                change[right, tokens[at + 2]] -= 1
                change[merged, tokens[at + 2]] += 1
            tokens[at : at + 2] = [merged]
        at += 1
