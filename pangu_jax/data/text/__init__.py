"""Text: sources, cleaning, tokenised shards, mixtures and packed batches."""

from pangu_jax.data.text.batches import (
    NO_LABEL,
    PackingConfig,
    consumed_tokens,
    text_batches,
)
from pangu_jax.data.text.build import CorpusConfig, build_corpus, read_cleaned
from pangu_jax.data.text.clean import CleanReport, Scored, clean
from pangu_jax.data.text.dedup import DedupConfig, Deduplicator
from pangu_jax.data.text.document import DOMAINS, Document
from pangu_jax.data.text.errors import TextDataError, TextDataWarning
from pangu_jax.data.text.filters import FilterConfig
from pangu_jax.data.text.mixture import PANGU_ULTRA_WEIGHTS, Mixture
from pangu_jax.data.text.quality import heuristic_difficulty, heuristic_quality
from pangu_jax.data.text.reading import ReadLog, ReadRules
from pangu_jax.data.text.shard_reader import TextShards
from pangu_jax.data.text.shards import ShardConfig, is_held_out, write_shards
from pangu_jax.data.text.sources import (
    SourceConfig,
    day_one_sources,
    read_source,
    read_sources,
    source_notice,
)

__all__ = [
    "DOMAINS",
    "NO_LABEL",
    "PANGU_ULTRA_WEIGHTS",
    "CleanReport",
    "CorpusConfig",
    "DedupConfig",
    "Deduplicator",
    "Document",
    "FilterConfig",
    "Mixture",
    "PackingConfig",
    "ReadLog",
    "ReadRules",
    "Scored",
    "ShardConfig",
    "SourceConfig",
    "TextDataError",
    "TextDataWarning",
    "TextShards",
    "build_corpus",
    "clean",
    "consumed_tokens",
    "day_one_sources",
    "heuristic_difficulty",
    "heuristic_quality",
    "is_held_out",
    "read_cleaned",
    "read_source",
    "read_sources",
    "source_notice",
    "text_batches",
    "write_shards",
]
