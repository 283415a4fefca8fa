"""One vocabulary out of several: quotas, de-duplication and a common order of merges.

The paper (section 2.3) analyses every domain on its own and then merges and de-duplicates the
domain vocabularies; it does not say how sizes or merge ranks are reconciled. Reconstructed here:

* Quotas. Each domain owns a share of the learned tokens. The domain that is furthest behind its
  quota gives its next token, in the order in which its own BPE learned them. A token that is
  there already is passed over at no cost, so what domains have in common is owned once and every
  domain reaches further down its list.
* Ranks. The rank of a token is the place at which it was taken. Every way to put a token together
  from two tokens of lower rank is a merge, and has the token's rank. So each merge's parts exist
  earlier, and a token that two domains build differently can be built both ways; with only the
  first domain's merge, the other's text would often not reach the token.
* Dead tokens. A token that the merges do not reach and that is no whole word (those are looked up
  before merges, see `build_tokenizer`) would never be used. Such tokens are banned and the places
  filled again, until there are none or the rounds are used up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pangu_jax.data.tokenizer.bpe import BpeConfig, Merge, byte_alphabet, is_word
from pangu_jax.data.tokenizer.errors import TokenizerError

_ROUNDS = 12


@dataclasses.dataclass(frozen=True)
class MergedVocabulary:
    """tokens: learned tokens by rank. merges: rules, strongest first. owner: domain that each
    token was taken from, as long as tokens, or () where tokens are of no one domain. dead: tokens
    that no text encodes to.
    """

    tokens: tuple[str, ...]
    merges: tuple[Merge, ...]
    owner: tuple[str, ...]
    dead: tuple[str, ...]


def quota_counts(quotas: Mapping[str, float], total: int) -> dict[str, int]:
    """Quotas (shares that sum to 1) as whole numbers that sum to `total`, by largest remainder.

    Raises:
      TokenizerError: no domain, a share that is not above 0, a sum that is not 1.
    """
    if not quotas:
        raise TokenizerError("There are no domains; give a share of the vocabulary to each.")
    for domain, share in quotas.items():
        if not share > 0:
            raise TokenizerError(f"The share of domain {domain!r} is {share}; it must be above 0.")
    if abs(sum(quotas.values()) - 1) > 1e-6:
        raise TokenizerError(
            f"The shares of the domains sum to {sum(quotas.values()):.6g}, not to 1: "
            f"{dict(quotas)}."
        )
    exact = {domain: share * total for domain, share in quotas.items()}
    counts = {domain: int(value) for domain, value in exact.items()}
    by_rest = sorted(exact, key=lambda d: (counts[d] - exact[d], d))
    for domain in by_rest[: total - sum(counts.values())]:
        counts[domain] += 1
    return counts


def merge_vocabularies(
    merges: Mapping[str, Sequence[Merge]], quotas: Mapping[str, float], config: BpeConfig
) -> MergedVocabulary:
    """Merges the domains' vocabularies to exactly config.vocab_size tokens; see the file's top.

    Args:
      merges: by domain, what `train_merges` gave.
      quotas: by domain, its share of the learned tokens; the shares sum to 1.

    Raises:
      TokenizerError: quotas and merges name different domains; the domains have too few different
        tokens for a quota (names the domain and what it has).
    """
    if set(merges) != set(quotas):
        raise TokenizerError(
            f"Quotas name the domains {sorted(quotas)}, the text has {sorted(merges)}; they must "
            "be the same."
        )
    counts = quota_counts(quotas, config.vocab_size - config.num_fixed)
    banned: set[str] = set()
    for attempt in range(_ROUNDS):
        tokens, owner = _take(merges, counts, banned, config)
        rules = _all_merges(tokens)
        dead = dead_tokens(tokens, rules, config)
        if not dead or attempt == _ROUNDS - 1:
            break
        banned |= set(dead)
    return MergedVocabulary(tuple(tokens), tuple(rules), tuple(owner), tuple(dead))


def _take(
    merges: Mapping[str, Sequence[Merge]],
    counts: Mapping[str, int],
    banned: set[str],
    config: BpeConfig,
) -> tuple[list[str], list[str]]:
    """Tokens by rank and their owners, each domain with exactly its count."""
    present = {*byte_alphabet(), *config.special_tokens}
    tokens: list[str] = []
    owner: list[str] = []
    place = dict.fromkeys(counts, 0)
    owned = dict.fromkeys(counts, 0)
    for _ in range(sum(counts.values())):
        domain = min(
            (d for d in counts if owned[d] < counts[d]), key=lambda d: (owned[d] / counts[d], d)
        )
        own = merges[domain]
        while place[domain] < len(own):
            left, right = own[place[domain]]
            place[domain] += 1
            token = left + right
            # A part may be missing because it was banned; another split may still build it.
            if token not in present and token not in banned and _buildable(token, present):
                break
        else:
            raise TokenizerError(
                f"Domain {domain!r} has text for only {owned[domain]} tokens that no other domain "
                f"gave before, its quota is {counts[domain]}; give it more text, a smaller share, "
                "or ask for a smaller vocab_size."
            )
        present.add(token)
        tokens.append(token)
        owner.append(domain)
        owned[domain] += 1
    return tokens, owner


def _buildable(token: str, present: set[str]) -> bool:
    return any(token[:i] in present and token[i:] in present for i in range(1, len(token)))


def _all_merges(tokens: Sequence[str]) -> list[Merge]:
    """Every split of every token into two tokens of lower rank, by the token's rank."""
    present = set(byte_alphabet())
    rules = []
    for token in tokens:
        splits = ((token[:i], token[i:]) for i in range(len(token) - 1, 0, -1))
        rules += [pair for pair in splits if pair[0] in present and pair[1] in present]
        present.add(token)
    return rules


def dead_tokens(tokens: Sequence[str], merges: Sequence[Merge], config: BpeConfig) -> list[str]:
    """Tokens that neither the merges nor a whole word lead to."""
    from tokenizers import models

    vocabulary = {token: i for i, token in enumerate([*byte_alphabet(), *tokens])}
    model = models.BPE(vocab=vocabulary, merges=list(merges))
    missed = (token for token in tokens if len(model.tokenize(token)) != 1)
    return [token for token in missed if not is_word(token, config)]
