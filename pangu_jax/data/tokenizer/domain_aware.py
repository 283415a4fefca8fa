"""Training of a domain-aware vocabulary and its comparison with one BPE over everything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pangu_jax.data.tokenizer.bpe import (
    BpeConfig,
    as_plain_text,
    build_tokenizer,
    train_merges,
)
from pangu_jax.data.tokenizer.errors import TokenizerError
from pangu_jax.data.tokenizer.merging import MergedVocabulary, merge_vocabularies

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A call gives the texts of a domain anew; a list of texts does as well.
Texts = Callable[[], Iterable[str]] | Iterable[str]


@dataclasses.dataclass(frozen=True)
class DomainShare:
    """One row of the report.

    quota, owned: share asked for, tokens taken from the domain. known: tokens of the final
    vocabulary that the domain's own BPE learned too. bytes_per_token: on held-out text, with the
    domain-aware vocabulary and with one BPE; None without held-out text.
    """

    quota: float
    owned: int
    known: int
    held_out_bytes: int = 0
    bytes_per_token: float | None = None
    global_bytes_per_token: float | None = None


@dataclasses.dataclass(frozen=True)
class VocabularyReport:
    """What `train_domain_aware` made, by domain; `dead` tokens cannot be reached by encoding."""

    vocab_size: int
    num_fixed: int
    num_merges: int
    dead: int
    domains: dict[str, DomainShare]

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def to_markdown(self) -> str:
        """The report as a table, one row per domain and the mean over domains."""
        learned = self.vocab_size - self.num_fixed
        lines = [
            f"{self.vocab_size} tokens: {self.num_fixed} fixed, {learned} learned with "
            f"{self.num_merges} merges, {self.dead} dead.",
            "",
            "| domain | quota | owned | known | held-out MB | bytes/token | one BPE | gain |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in self.domains.items():
            rates = ["-", "-", "-"]
            if row.bytes_per_token and row.global_bytes_per_token:
                gain = row.bytes_per_token / row.global_bytes_per_token - 1
                rates = [
                    f"{row.bytes_per_token:.3f}",
                    f"{row.global_bytes_per_token:.3f}",
                    f"{gain:+.2%}",
                ]
            share = row.owned / learned if learned else 0.0
            lines.append(
                f"| {name} | {row.quota:.1%} | {row.owned} ({share:.1%}) | {row.known} | "
                f"{row.held_out_bytes / 1e6:.2f} | {' | '.join(rates)} |"
            )
        return "\n".join(lines) + "\n"


def train_domain_aware(
    texts: Mapping[str, Texts],
    quotas: Mapping[str, float],
    config: BpeConfig,
) -> tuple[Tokenizer, MergedVocabulary, dict[str, int]]:
    """Byte-level BPE per domain, merged to one vocabulary of exactly config.vocab_size tokens.

    Args:
      texts: by domain, texts to learn from.
      quotas: by domain, its share of the learned tokens; the shares sum to 1.

    Returns:
      The tokenizer, the merged vocabulary, and by domain how many of its tokens were kept.

    Raises:
      TokenizerError: see `merge_vocabularies` and `train_merges`.

    Source: Pangu Ultra, section 2.3; the reconciliation of merges is reconstructed, see
    `merging.py`.
    """
    if set(texts) != set(quotas):
        raise TokenizerError(
            f"Quotas name the domains {sorted(quotas)}, the texts are of {sorted(texts)}; they "
            "must be the same."
        )
    merges = {}
    for domain in sorted(texts):
        try:
            merges[domain] = train_merges(_read(texts[domain]), config)
        except TokenizerError as error:
            raise TokenizerError(f"Domain {domain!r}: {error}") from error
    merged = merge_vocabularies(merges, quotas, config)
    kept = set(merged.tokens)
    known = {d: len(kept & {a + b for a, b in own}) for d, own in merges.items()}
    tokenizer = as_plain_text(build_tokenizer(merged.tokens, merged.merges, config))
    return tokenizer, merged, known


def vocabulary_report(
    merged: MergedVocabulary,
    known: Mapping[str, int],
    quotas: Mapping[str, float],
    config: BpeConfig,
    *,
    tokenizer: Tokenizer | None = None,
    global_tokenizer: Tokenizer | None = None,
    held_out: Mapping[str, Texts] | None = None,
) -> VocabularyReport:
    """Shares by domain and, with held-out texts, compression of both vocabularies.

    The two tokenizers should have the same size and have seen the same text.
    """
    rows = {}
    for domain, quota in quotas.items():
        row: dict[str, Any] = {
            "quota": quota,
            "owned": merged.owner.count(domain),
            "known": known[domain],
        }
        if held_out and domain in held_out and tokenizer and global_tokenizer:
            sample = list(_read(held_out[domain]))
            size = sum(len(text.encode("utf-8")) for text in sample)
            row["held_out_bytes"] = size
            row["bytes_per_token"] = bytes_per_token(tokenizer, sample)
            row["global_bytes_per_token"] = bytes_per_token(global_tokenizer, sample)
        rows[domain] = DomainShare(**row)
    return VocabularyReport(
        config.vocab_size, config.num_fixed, len(merged.merges), len(merged.dead), rows
    )


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """UTF-8 bytes of all texts over the number of their tokens; NaN without tokens."""
    size = tokens = 0
    batch: list[str] = []
    for text in texts:
        size += len(text.encode("utf-8"))
        batch.append(text)
        if len(batch) == 256:
            tokens += sum(map(len, tokenizer.encode_batch(batch, add_special_tokens=False)))
            batch = []
    tokens += sum(map(len, tokenizer.encode_batch(batch, add_special_tokens=False)))
    return size / tokens if tokens else float("nan")


def _read(texts: Texts) -> Iterable[str]:
    return texts() if callable(texts) else texts
