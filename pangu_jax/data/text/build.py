"""The whole way from sources to shards as one function, each stage kept on disk.

Folder: cleaned.jsonl, clean.json and clean.md (counts), vocabulary.json and vocabulary.md (report),
tokenizer.json, train/ and held_out/ (shards). Every stage is put in place whole, so a run that is
started again goes on with the first stage that is missing, and within the shards where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pangu_jax.config.resolve import to_dict
from pangu_jax.data.text.clean import CleanReport, Scored, clean
from pangu_jax.data.text.dedup import DedupConfig
from pangu_jax.data.text.document import Document
from pangu_jax.data.text.errors import TextDataError
from pangu_jax.data.text.filters import FilterConfig
from pangu_jax.data.text.quality import Scorer, heuristic_difficulty, heuristic_quality
from pangu_jax.data.text.reading import ReadRules
from pangu_jax.data.text.shards import (
    MANIFEST,
    TOKENIZER,
    ShardConfig,
    is_held_out,
    is_sampled,
    write_shards,
)
from pangu_jax.data.text.sources import SourceConfig, read_sources, source_notice
from pangu_jax.data.tokenizer import (
    METHODS,
    BpeConfig,
    VocabularyReport,
    compare_vocabularies,
    load_tokenizer,
    quota_counts,
    save_tokenizer,
    train_bpe,
    train_domain_aware,
    vocabulary_report,
)
from pangu_jax.data.wheel import locked

_CLEANED = "cleaned.jsonl"
_COUNTS = "clean.json"
_SETTINGS = "corpus.json"
VOCABULARY = "vocabulary.json"  # the report on a domain-aware vocabulary, beside it as .md


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of.

    Attributes:
      sources: where documents come from.
      quotas: domain -> share of the learned tokens (of the bytes trained on, where the method is
        'resampled'); {} trains one BPE over everything.
      bpe: size and special tokens of the vocabulary; shards end documents with bpe.eod_token.
      method: of the domain-aware vocabulary, 'merged' (the paper's), 'joint' or 'resampled' (ours).
      tokenizer: path of a tokenizer.json to use instead of training one.
      vocabulary_bytes: train the vocabulary on at most about so many bytes of each domain,
        documents picked by their hash; 0 takes all. Where no spaces separate words, memory grows
        with the text (docs/text_data.md).
      compare: also train one BPE of the same size and report both on the held-out documents; may
        be switched on later, since it changes no token.
      filters: limits by domain in place of the default ones.
      read, dedup, shards: see there.
      extra_domains: domain names besides DOMAINS.
    """

    sources: tuple[SourceConfig, ...]
    quotas: dict[str, float] = dataclasses.field(default_factory=dict)
    bpe: BpeConfig = BpeConfig()
    method: str = "merged"
    tokenizer: str = ""
    vocabulary_bytes: int = 0
    compare: bool = True
    filters: dict[str, FilterConfig] = dataclasses.field(default_factory=dict)
    read: ReadRules | None = None
    dedup: DedupConfig = DedupConfig()
    shards: ShardConfig = ShardConfig()
    extra_domains: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.sources:
            raise TextDataError("A corpus needs at least one source.")
        if self.method not in METHODS:
            raise TextDataError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if self.quotas:
            quota_counts(self.quotas, self.bpe.vocab_size)  # before minutes of reading
        if self.vocabulary_bytes < 0:
            raise TextDataError(
                f"vocabulary_bytes must be at least 0, got {self.vocabulary_bytes}."
            )
        if not self.tokenizer and self.shards.eod_token != self.bpe.eod_token:
            raise TextDataError(
                f"shards.eod_token is {self.shards.eod_token!r}, bpe.eod_token "
                f"{self.bpe.eod_token!r}; they must be the same."
            )


def build_corpus(
    config: CorpusConfig,
    folder: str | Path,
    *,
    quality: Scorer = heuristic_quality,
    difficulty: Scorer = heuristic_difficulty,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Reads, cleans, trains the vocabulary on the documents that are not held out, writes shards.

    Args:
      quality, difficulty: functions from Document to [0, 1]. They are not part of what is compared
        with an earlier run in the same folder.
      report: called with a line of text at every stage.

    Returns:
      The folder; open it with `TextShards(folder / 'train')`.

    Raises:
      TextDataError: the folder holds another corpus; what the stages raise.
      TokenizerError: too little text for the vocabulary.
    """
    _require_tokenizers()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = to_dict(config)
    settings.pop("compare")
    with locked(folder / ".build-lock"):
        noted = folder / _SETTINGS
        if noted.is_file() and _noted(noted) != settings:
            raise TextDataError(
                f"{folder} holds a corpus of other settings (see {_SETTINGS} there); choose an "
                "empty folder."
            )
        noted.write_text(json.dumps(settings, indent=1, sort_keys=True))
        cleaned = folder / _CLEANED
        if not cleaned.is_file():
            report("reading and cleaning")
            for source in config.sources:
                report(f"  {source_notice(source)}")
            _write_cleaned(config, folder, quality, difficulty)
        if config.tokenizer:
            tokenizer = load_tokenizer(config.tokenizer)
        else:
            if not (folder / TOKENIZER).is_file():
                report("training the vocabulary")
                _train_tokenizer(config, folder)
            tokenizer = load_tokenizer(folder / TOKENIZER)
            if config.quotas and config.compare:
                _compare(config, folder, tokenizer, report)
        with open(cleaned, "rb") as handle:
            corpus = hashlib.file_digest(handle, "sha256").hexdigest()
        if not (folder / "held_out" / MANIFEST).is_file():
            report("writing shards")
        write_shards(
            read_cleaned(folder), tokenizer, folder, corpus=corpus, config=config.shards,
            report=report,
        )  # fmt: skip
    return folder


def _require_tokenizers() -> None:
    # Before minutes go into reading and cleaning.
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise TextDataError(
            "Text data needs the package tokenizers: run pip install -e '.[text]' in the checkout."
        ) from error


def read_cleaned(folder: str | Path) -> Iterator[Scored]:
    """The cleaned documents of a corpus folder, in order."""
    with open(Path(folder) / _CLEANED, encoding="utf-8", newline="\n") as handle:
        for line in handle:
            row = json.loads(line)
            document = Document(row["text"], row["domain"], row["source"], row["id"])
            yield Scored(document, row["quality"], row["difficulty"])


def _write_cleaned(config: CorpusConfig, folder: Path, quality: Scorer, difficulty: Scorer) -> None:
    counts = CleanReport()
    documents = read_sources(config.sources, rules=config.read, extra_domains=config.extra_domains)
    scratch = folder / (_CLEANED + ".part")
    with open(scratch, "w", encoding="utf-8", newline="\n") as out:
        for scored in clean(
            documents, filters=config.filters, dedup=config.dedup, quality=quality,
            difficulty=difficulty, report=counts,
        ):  # fmt: skip
            row = dataclasses.asdict(scored.document)
            row |= {"quality": scored.quality, "difficulty": scored.difficulty}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    if not any(row["kept"] for row in counts.to_dict().values()):
        raise TextDataError(
            f"No document is left of {len(config.sources)} source(s): {_what_went(counts)}. Give "
            "sources with text, or wider --config.corpus.filters."
        )
    (folder / _COUNTS).write_text(json.dumps(counts.to_dict(), indent=1))
    (folder / "clean.md").write_text(counts.to_markdown())
    os.replace(scratch, folder / _CLEANED)


def _what_went(counts: CleanReport) -> str:
    gone = {
        domain: ", ".join(f"{reason} {count}" for reason, count in row["removed"].items())
        for domain, row in counts.to_dict().items()
    }
    told = "; ".join(f"{domain}: {reasons}" for domain, reasons in gone.items() if reasons)
    return told or "none was read (empty ones and what is not UTF-8 are left out)"


def _train_tokenizer(config: CorpusConfig, folder: Path) -> None:
    everything = functools.partial(_texts, folder, config, held_out=False)
    if not config.quotas:
        save_tokenizer(train_bpe(everything(), config.bpe), folder / TOKENIZER)
        return
    domains = [domain for domain, row in _counts(folder).items() if row["kept"]]
    train = {d: functools.partial(everything, domain=d) for d in domains}
    tokenizer, merged = train_domain_aware(train, config.quotas, config.bpe, method=config.method)
    _write_vocabulary(vocabulary_report(merged, config.quotas, config.bpe), folder)
    save_tokenizer(tokenizer, folder / TOKENIZER)


def _compare(
    config: CorpusConfig, folder: Path, tokenizer: Any, report: Callable[[str], None]
) -> None:
    """Adds the held-out comparison with one BPE to the vocabulary's report, once."""
    about = VocabularyReport.from_json((folder / VOCABULARY).read_text())
    if about.compared:
        return
    report("comparing the vocabulary with one BPE over everything")
    held_out = {
        domain: functools.partial(_texts, folder, config, held_out=True, domain=domain)
        for domain in about.domains
    }
    one = train_bpe(_texts(folder, config, held_out=False), config.bpe)
    _write_vocabulary(compare_vocabularies(about, tokenizer, one, held_out), folder)


def _write_vocabulary(about: VocabularyReport, folder: Path) -> None:
    (folder / VOCABULARY).with_suffix(".md").write_text(about.to_markdown())
    scratch = folder / (VOCABULARY + ".part")
    scratch.write_text(about.to_json())
    os.replace(scratch, folder / VOCABULARY)


def _noted(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text())
    except json.JSONDecodeError:
        return {}
    settings.pop("compare", None)
    return {"vocabulary_bytes": 0} | settings  # absent in corpora that were built before it was


def _texts(
    folder: Path, config: CorpusConfig, *, held_out: bool, domain: str = ""
) -> Iterator[str]:
    """Texts of one split; those that are not held out only so far as vocabulary_bytes allows."""
    shares = {} if held_out else _training_shares(folder, config)
    for scored in read_cleaned(folder):
        document = scored.document
        if domain in ("", document.domain):
            if is_held_out(document.text, config.shards.held_out) == held_out:
                if is_sampled(document.text, shares.get(document.domain, 1.0)):
                    yield document.text


def _training_shares(folder: Path, config: CorpusConfig) -> dict[str, float]:
    if not config.vocabulary_bytes:
        return {}
    trained = 1 - config.shards.held_out
    return {
        domain: config.vocabulary_bytes / max(row["kept_bytes"] * trained, 1)
        for domain, row in _counts(folder).items()
    }


def _counts(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / _COUNTS).read_text())
