"""From documents as read to documents worth training on, with a count for every reason."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pangu_jax.data.text.dedup import DedupConfig, Deduplicator
from pangu_jax.data.text.document import Document
from pangu_jax.data.text.errors import TextDataError
from pangu_jax.data.text.filters import FilterConfig, broken_rule, filters_for
from pangu_jax.data.text.quality import Scorer, heuristic_difficulty, heuristic_quality


class Scored(NamedTuple):
    """A document that was kept; quality and difficulty are in [0, 1]."""

    document: Document
    quality: float
    difficulty: float


@dataclasses.dataclass
class CleanReport:
    """Counts by domain; `removed` by domain and reason (a filter's name, 'exact', 'near')."""

    read: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kept: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    read_bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kept_bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    removed: dict[str, collections.Counter] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            domain: {
                "read": self.read[domain],
                "kept": self.kept[domain],
                "read_bytes": self.read_bytes[domain],
                "kept_bytes": self.kept_bytes[domain],
                "removed": dict(sorted(self.removed.get(domain, {}).items())),
            }
            for domain in sorted(self.read)
        }

    def to_markdown(self) -> str:
        """A table with one row per domain."""
        lines = [
            "| domain | documents read | kept | MB read | MB kept | removed |",
            "|---|---|---|---|---|---|",
        ]
        for domain, row in self.to_dict().items():
            removed = ", ".join(f"{name} {count}" for name, count in row["removed"].items())
            lines.append(
                f"| {domain} | {row['read']} | {row['kept']} | {row['read_bytes'] / 1e6:.2f} | "
                f"{row['kept_bytes'] / 1e6:.2f} | {removed or '-'} |"
            )
        return "\n".join(lines) + "\n"


def clean(
    documents: Iterable[Document],
    *,
    filters: Mapping[str, FilterConfig] | None = None,
    dedup: DedupConfig | None = None,
    quality: Scorer = heuristic_quality,
    difficulty: Scorer = heuristic_difficulty,
    report: CleanReport | None = None,
) -> Iterator[Scored]:
    """Filters, removes duplicates and scores, lazily and in the order given.

    Args:
      filters: limits by domain in place of `filters.DEFAULT_FILTERS`.
      quality, difficulty: functions to [0, 1].
      report: counts are added to it.

    Raises:
      TextDataError: a scorer leaves [0, 1]; names the document.
    """
    report = report if report is not None else CleanReport()
    duplicates = Deduplicator(dedup)
    for document in documents:
        domain, size = document.domain, len(document.text.encode("utf-8"))
        report.read[domain] += 1
        report.read_bytes[domain] += size
        reason = broken_rule(document, filters_for(domain, filters))
        reason = reason or duplicates.seen(document.text)
        if reason:
            report.removed.setdefault(domain, collections.Counter())[reason] += 1
            continue
        scores = []
        for name, scorer in (("quality", quality), ("difficulty", difficulty)):
            value = float(scorer(document))
            if not 0 <= value <= 1:
                raise TextDataError(
                    f"The {name} scorer gave {value} for {document.source}/{document.id}; scores "
                    "must lie in [0, 1]."
                )
            scores.append(value)
        report.kept[domain] += 1
        report.kept_bytes[domain] += size
        yield Scored(document, *scores)
