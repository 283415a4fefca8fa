"""One description for every kind of source, and the text that is there on day one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from pangu_jax.data.text import builtin, user_files
from pangu_jax.data.text.document import Document, check_domain
from pangu_jax.data.text.errors import TextDataError, choose_from
from pangu_jax.data.text.reading import ReadLog, ReadRules

# Kind -> (reader, the domain it has when none is given).
_BUILTIN: dict[str, tuple[Callable[..., Iterator[Document]], str]] = {
    "stdlib": (builtin.stdlib_documents, "code"),
    "package_docs": (builtin.package_documents, "english"),
    "docstrings": (builtin.docstring_documents, "english"),
    "human_eval": (builtin.human_eval_documents, "code"),
    "bfcl": (builtin.bfcl_documents, "instruction"),
    "mt_bench": (builtin.mt_bench_documents, "instruction"),
}
_USER = ("folder", "jsonl", "parquet", "tfds")
KINDS = (*_BUILTIN, *_USER)
EVALUATION_SETS = ("human_eval", "bfcl", "mt_bench")

NOTICES = {
    "stdlib": "Python standard library: PSF licence.",
    "package_docs": "Documentation of installed packages: each under its package's licence.",
    "docstrings": "Docstrings of installed packages: each under its package's licence.",
    "human_eval": "HumanEval: MIT; Chen et al. 2021, arXiv:2107.03374. An evaluation set.",
    "bfcl": "Berkeley Function Calling Leaderboard: Apache-2.0; Patil et al. An evaluation set.",
    "mt_bench": "MT-bench (FastChat): Apache-2.0; Zheng et al. 2023, arXiv:2306.05685. "
    "An evaluation set.",
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where documents come from.

    Attributes:
      kind: one of KINDS.
      domain: domain of the documents; '' takes the kind's own (needed for the user's files).
      path: file or folder; for tfds the data set's name, as 'lm1b:1.1.0'.
      field: JSON field, Parquet column or tfds feature that holds the text.
      suffixes: endings of the files of a folder; () takes `user_files.TEXT_SUFFIXES`.
      packages: for package_docs and docstrings, the packages to read; () means all installed.
      split: split of a tfds data set.
      max_documents: stop after so many; 0 reads all.
      name: source name on the documents; '' takes the file's, package's or data set's.
    """

    kind: str
    domain: str = ""
    path: str = ""
    field: str = "text"
    suffixes: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    split: str = "train"
    max_documents: int = 0
    name: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise choose_from("source kind", self.kind, KINDS, "Set kind.")
        if self.kind in _USER and not (self.path and self.domain):
            raise TextDataError(
                f"A source of kind {self.kind!r} needs a path and a domain; got "
                f"path={self.path!r}, domain={self.domain!r}."
            )
        if self.max_documents < 0:
            raise TextDataError(f"max_documents must be at least 0, got {self.max_documents}.")


def day_one_sources(evaluation_sets: bool = False) -> tuple[SourceConfig, ...]:
    """The sources that need nothing but the installation (and, the first time, a package index).

    Args:
      evaluation_sets: also HumanEval, BFCL and MT-bench. They are what models are scored on, so
        they are for tokenizer studies and tests, not for a model that will be evaluated.
    """
    kinds = tuple(k for k in _BUILTIN if evaluation_sets or k not in EVALUATION_SETS)
    return tuple(SourceConfig(kind) for kind in kinds)


def source_notice(config: SourceConfig) -> str:
    """Licence and citation to show where a source is used; the user's own files carry none."""
    return NOTICES.get(config.kind, f"{config.path}: the user's own data, licence not known here.")


def read_source(
    config: SourceConfig,
    *,
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
    extra_domains: Sequence[str] = (),
) -> Iterator[Document]:
    """Documents of one source, lazily, always in the same order.

    Args:
      rules: None takes the reader's own: packages' files replace bad bytes, all others raise.
      log: counts are added to it as documents are read.
      extra_domains: names allowed besides DOMAINS.

    Raises:
      TextDataError: unknown domain, and what the reader says about files, fields and bytes.
    """
    common = {"rules": rules, "log": log if log is not None else ReadLog()}
    if config.kind in _BUILTIN:
        reader, own = _BUILTIN[config.kind]
        domain = check_domain(config.domain or own, extra_domains)
        if config.kind in ("package_docs", "docstrings"):
            common["packages"] = config.packages
        documents = reader(domain, **common)
    else:
        domain = check_domain(config.domain, extra_domains)
        common["source"] = config.name
        if config.kind == "folder":
            suffixes = config.suffixes or user_files.TEXT_SUFFIXES
            documents = user_files.folder_documents(
                config.path, domain, suffixes=suffixes, **common
            )
        elif config.kind == "jsonl":
            documents = user_files.jsonl_documents(
                config.path, domain, field=config.field, **common
            )
        elif config.kind == "parquet":
            documents = user_files.parquet_documents(
                config.path, domain, column=config.field, **common
            )
        else:
            documents = user_files.tfds_documents(
                config.path, domain, feature=config.field, split=config.split, **common
            )
    return itertools.islice(documents, config.max_documents or None)


def read_sources(
    configs: Sequence[SourceConfig],
    *,
    rules: ReadRules | None = None,
    logs: dict[int, ReadLog] | None = None,
    extra_domains: Sequence[str] = (),
) -> Iterator[Document]:
    """Documents of several sources, one source after the other; logs[i] counts source i."""
    for number, config in enumerate(configs):
        log = ReadLog() if logs is None else logs.setdefault(number, ReadLog())
        yield from read_source(config, rules=rules, log=log, extra_domains=extra_domains)
