"""Training of a domain-aware vocabulary and its comparison with one BPE over everything."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from pangu_jax.data.tokenizer.bpe import (
    BpeConfig,
    as_plain_text,
    build_tokenizer,
    train_merges,
)
from pangu_jax.data.tokenizer.errors import TokenizerError
from pangu_jax.data.tokenizer.joint import joint_vocabulary
from pangu_jax.data.tokenizer.merging import MergedVocabulary, merge_vocabularies
from pangu_jax.data.tokenizer.resampling import resampled_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A call gives the texts of a domain anew; a list of texts does as well.
Texts = Callable[[], Iterable[str]] | Iterable[str]

Method = Literal["merged", "joint", "resampled"]
METHODS = get_args(Method)


@dataclasses.dataclass(frozen=True)
class DomainShare:
    """One row of the report.

    quota, owned: share asked for, tokens taken from the domain (None where tokens have no owner).
    used: different tokens of the vocabulary that its held-out text has. bytes_per_token: on
    held-out text, with the domain-aware vocabulary and with one BPE; None without held-out text.
    """

    quota: float
    owned: int | None
    held_out_bytes: int = 0
    used: int = 0
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

    @property
    def compared(self) -> bool:
        """Whether the held-out comparison with one BPE is in it."""
        return any(row.global_bytes_per_token is not None for row in self.domains.values())

    @classmethod
    def from_json(cls, text: str) -> VocabularyReport:
        """The report that `to_json` wrote."""
        values = json.loads(text)
        rows = {name: DomainShare(**row) for name, row in values.pop("domains").items()}
        return cls(domains=rows, **values)

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
            "| domain | quota | owned | held-out MB | used | bytes/token | one BPE | gain |",
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
            owned = "-"
            if row.owned is not None:
                owned = f"{row.owned} ({row.owned / learned if learned else 0.0:.1%})"
            lines.append(
                f"| {name} | {row.quota:.1%} | {owned} | "
                f"{row.held_out_bytes / 1e6:.2f} | {row.used} | {' | '.join(rates)} |"
            )
        return "\n".join(lines) + "\n"


def train_domain_aware(
    texts: Mapping[str, Texts],
    quotas: Mapping[str, float],
    config: BpeConfig,
    *,
    method: Method = "merged",
) -> tuple[Tokenizer, MergedVocabulary]:
    """Byte-level BPE of exactly config.vocab_size tokens with a share of them for each domain.

    Args:
      texts: by domain, texts to learn from.
      quotas: by domain, its share of the learned tokens ('resampled': of the bytes trained on);
        the shares sum to 1.
      method: 'merged' trains one BPE per domain and merges the vocabularies, as the paper
        describes it (how merges are reconciled is reconstructed, see `merging.py`); 'joint' learns
        one list of merges in which the domains take turns (ours, see `joint.py`); 'resampled' is
        one BPE over text in which small domains are repeated (ours, see `resampling.py`).

    Raises:
      TokenizerError: domains without quota or without text, quotas that do not sum to 1, too
        little text for a quota.

    Source: Pangu Ultra, section 2.3.
    """
    if method not in METHODS:
        raise TokenizerError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if set(texts) != set(quotas):
        raise TokenizerError(
            f"Quotas name the domains {sorted(quotas)}, the texts are of {sorted(texts)}; they "
            "must be the same."
        )
    if method == "joint":
        merged = joint_vocabulary({d: _read(t) for d, t in texts.items()}, quotas, config)
    elif method == "resampled":
        anew = {
            d: functools.partial(_read, t if callable(t) else list(t)) for d, t in texts.items()
        }
        merged = resampled_vocabulary(anew, quotas, config)
    else:
        merges = {}
        for domain in sorted(texts):
            try:
                merges[domain] = train_merges(_read(texts[domain]), config)
            except TokenizerError as error:
                raise TokenizerError(f"Domain {domain!r}: {error}") from error
        merged = merge_vocabularies(merges, quotas, config)
    return as_plain_text(build_tokenizer(merged.tokens, merged.merges, config)), merged


def vocabulary_report(
    merged: MergedVocabulary,
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
    rows = {
        domain: DomainShare(quota, merged.owner.count(domain) if merged.owner else None)
        for domain, quota in quotas.items()
    }
    about = VocabularyReport(
        config.vocab_size, config.num_fixed, len(merged.merges), len(merged.dead), rows
    )
    if held_out and tokenizer and global_tokenizer:
        about = compare_vocabularies(about, tokenizer, global_tokenizer, held_out)
    return about


def compare_vocabularies(
    about: VocabularyReport,
    tokenizer: Tokenizer,
    global_tokenizer: Tokenizer,
    held_out: Mapping[str, Texts],
) -> VocabularyReport:
    """The report with the compression of both vocabularies on held-out texts."""
    rows = dict(about.domains)
    for domain in rows:
        if domain not in held_out:
            continue
        size, own, other = _compression((tokenizer, global_tokenizer), _read(held_out[domain]))
        rows[domain] = dataclasses.replace(
            rows[domain],
            held_out_bytes=size,
            used=own[1],
            bytes_per_token=_rate(size, own[0]),
            global_bytes_per_token=_rate(size, other[0]),
        )
    return dataclasses.replace(about, domains=rows)


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """UTF-8 bytes of all texts over the number of their tokens; NaN without tokens."""
    size, (count, _) = _compression((tokenizer,), texts)
    return _rate(size, count)


def _compression(tokenizers: Sequence[Tokenizer], texts: Iterable[str]) -> list:
    """[bytes, (tokens, different tokens) for each tokenizer], in one pass over the texts."""
    size, counts = 0, [0] * len(tokenizers)
    used: list[set[int]] = [set() for _ in tokenizers]
    stream = iter(texts)
    while batch := list(itertools.islice(stream, 256)):
        size += sum(len(text.encode("utf-8")) for text in batch)
        for number, tokenizer in enumerate(tokenizers):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                counts[number] += len(encoding)
                used[number].update(encoding.ids)
    return [size, *zip(counts, map(len, used), strict=True)]


def _rate(size: int, count: int) -> float:
    return size / count if count else float("nan")


def _read(texts: Texts) -> Iterable[str]:
    return texts() if callable(texts) else texts
