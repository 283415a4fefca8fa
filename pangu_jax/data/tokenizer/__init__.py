"""Byte-level BPE, one over everything or merged from one per domain."""

from pangu_jax.data.tokenizer.bpe import (
    BpeConfig,
    as_plain_text,
    build_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
    train_bpe,
    train_merges,
)
from pangu_jax.data.tokenizer.domain_aware import (
    METHODS,
    DomainShare,
    VocabularyReport,
    bytes_per_token,
    compare_vocabularies,
    train_domain_aware,
    vocabulary_report,
)
from pangu_jax.data.tokenizer.errors import TokenizerError
from pangu_jax.data.tokenizer.merging import MergedVocabulary, merge_vocabularies, quota_counts

__all__ = [
    "METHODS",
    "BpeConfig",
    "DomainShare",
    "MergedVocabulary",
    "TokenizerError",
    "VocabularyReport",
    "as_plain_text",
    "build_tokenizer",
    "bytes_per_token",
    "compare_vocabularies",
    "load_tokenizer",
    "merge_vocabularies",
    "quota_counts",
    "save_tokenizer",
    "tokenizer_hash",
    "train_bpe",
    "train_domain_aware",
    "train_merges",
    "vocabulary_report",
]
