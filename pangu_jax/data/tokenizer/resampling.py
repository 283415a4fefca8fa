"""One ordinary BPE over text in which each domain has its quota of the bytes.

Ours, not the paper's: the simplest way to give a small domain more of the vocabulary. It was at
least as good as merging where the two were compared (docs/text_data.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

from pangu_jax.data.tokenizer.bpe import BpeConfig, all_tokens, train_merges, training_texts
from pangu_jax.data.tokenizer.errors import TokenizerError
from pangu_jax.data.tokenizer.merging import MergedVocabulary, quota_counts


def resampled_vocabulary(
    texts: Mapping[str, Callable[[], Iterable[str]]], quotas: Mapping[str, float], config: BpeConfig
) -> MergedVocabulary:
    """Exactly config.vocab_size tokens; no domain owns a token, so `owner` is empty.

    Args:
      texts: by domain, a function that gives its texts anew; each is read twice.
      quotas: by domain, its share of the UTF-8 bytes that are trained on; the shares sum to 1.

    Raises:
      TokenizerError: a domain without text, quotas that do not sum to 1, too little text, a text
        that is no string or holds a lone surrogate.
    """
    quota_counts(quotas, config.vocab_size)  # for its checks of the shares
    merges = train_merges(_repeated(texts, quotas), config)
    return MergedVocabulary(tuple(all_tokens(merges, config)), tuple(merges), owner=(), dead=())


def _repeated(
    texts: Mapping[str, Callable[[], Iterable[str]]], quotas: Mapping[str, float]
) -> Iterator[str]:
    """Every text at least once, and as often that the domains have their quotas of the bytes."""
    times = {}
    for domain in sorted(texts):
        size = sum(len(text.encode("utf-8")) for text in training_texts(texts[domain]()))
        if not size:
            raise TokenizerError(f"Domain {domain!r}: There is no text to train a vocabulary on.")
        times[domain] = quotas[domain] / size
    least = min(times.values())
    for domain in sorted(texts):
        due = 0.0
        for text in texts[domain]():
            due += times[domain] / least
            yield from itertools.repeat(text, int(due))
            due -= int(due)
