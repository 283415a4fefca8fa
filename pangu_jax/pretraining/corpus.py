"""The corpus of a run: built once, opened as shards, handed out phase by phase."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil

import jax
from jax.sharding import Mesh

from pangu_jax.config.resolve import to_dict
from pangu_jax.data.text import Mixture, TextShards, build_corpus, consumed_tokens, text_batches
from pangu_jax.data.text.document import check_domain
from pangu_jax.data.text.errors import TextDataError
from pangu_jax.data.text.filters import DEFAULT_FILTERS, FilterConfig
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.data.wheel import cache_dir
from pangu_jax.parallel.sharding import batch_part
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.pretraining.placement import document_multiple
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.phases import PhaseSchedule
from pangu_jax.training.workdir import Workdir, write_json

_IDENTITY = "corpus.json"  # in the directory of a run


class PretrainError(ValueError):
    """Corpus, model and schedule do not fit together; the text says what to change."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokenised text of a run.

    train, held_out: shards. mixtures: restricted to the domains that `train` has.
    missing: mixture name -> domains with a weight that the corpus lacks.
    """

    folder: pathlib.Path
    train: TextShards
    held_out: TextShards
    mixtures: dict[str, Mixture]
    missing: dict[str, list[str]]

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of the tokenizer and of the training documents in their order."""
        manifest = json.loads((self.folder / "train" / "manifest.json").read_text())
        return {key: manifest[key] for key in ("tokenizer_sha256", "documents_sha256")}

    @functools.cached_property
    def tokenizer(self):
        return load_tokenizer(self.folder / "tokenizer.json")

    def batches(self, config: PretrainConfig, schedule: PhaseSchedule, index: int, mesh: Mesh):
        """Endless batches of phase `index`, going on where the phases before have stopped."""
        start: dict[str, int] = {}
        if config.packing.rows == "concat":
            for phase in schedule.phases[:index]:
                start = consumed_tokens(
                    self.mixtures[phase.mixture], seq_len=phase.seq_len,
                    batch_rows=phase.batch_rows, num_batches=phase.steps, start=start,
                    shuffle_rows=config.packing.shuffle_rows,
                )  # fmt: skip
        phase = schedule.phases[index]
        part, parts = batch_part(mesh)
        mixture = self.mixtures[phase.mixture]
        wanted = {name: count for name, count in start.items() if name in mixture.weights}
        packing = dataclasses.replace(config.packing, document_multiple=document_multiple(config))
        return text_batches(
            self.train, mixture, seq_len=phase.seq_len, batch_rows=phase.batch_rows,
            seed=config.train.seed, packing=packing, start=wanted,
            process_index=part, process_count=parts,
        )  # fmt: skip


def keep_to_corpus(corpus: Corpus, workdir: Workdir) -> None:
    """Notes in the directory of a run which corpus it reads, with its tokenizer.json; once there
    are checkpoints, raises PretrainError for another one (the same settings give other text where
    other packages are installed)."""
    if Checkpoints.any_in(workdir.latest):
        check_corpus(corpus, workdir.path, documents=True)  # on all processes: all give up
    elif jax.process_index() == 0:
        shutil.copyfile(corpus.folder / "tokenizer.json", workdir.path / "tokenizer.json")
        write_json(workdir.path / _IDENTITY, corpus.identity | {"folder": str(corpus.folder)})


def of_the_run(config: PretrainConfig, workdir: str | pathlib.Path) -> PretrainConfig:
    """The configuration with the corpus that the checkpoints of a run were trained on, where that
    is still there and no folder is given: the text it was made of may have changed since."""
    workdir = pathlib.Path(workdir)
    if config.corpus_folder or not Checkpoints.any_in(workdir / "checkpoints" / "latest"):
        return config
    folder = _noted(workdir).get("folder")
    if not folder or not (pathlib.Path(folder) / "train" / "manifest.json").is_file():
        return config
    return dataclasses.replace(config, corpus_folder=folder)


def _noted(workdir: pathlib.Path) -> dict[str, str]:
    try:
        return json.loads((workdir / _IDENTITY).read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def check_corpus(corpus: Corpus, workdir: str | pathlib.Path, *, documents: bool = False) -> None:
    """Raises PretrainError where the corpus is not the one that the run was trained on.

    documents: they must be the same too, not only the tokenizer. A directory without a note of its
    corpus passes.
    """
    noted = _noted(pathlib.Path(workdir))
    if not noted:
        return
    kinds = {"tokenizer_sha256": "tokenizer", "documents_sha256": "training documents"}
    for key, what in kinds.items() if documents else [("tokenizer_sha256", "tokenizer")]:
        here, there = corpus.identity[key], noted.get(key, "")
        if here != there:
            raise PretrainError(
                f"The {what} of the corpus {corpus.folder} (SHA-256 {here[:12]}...) and of the "
                f"run in {workdir} ({there[:12]}...) are not the same: the corpus was built anew "
                "from other text. Its tokens would mean something else to the checkpoint. Point "
                f"--config.corpus_folder at the corpus of the run (it was {noted.get('folder')}), "
                "or train anew in another --workdir."
            )


def open_corpus(config: PretrainConfig, schedule: PhaseSchedule, say=lambda line: None) -> Corpus:
    """Builds the corpus where it is not there yet, and opens it.

    With several processes they must share the folder; the first builds it.

    Raises:
      PretrainError: a vocabulary of another size than the model's, an unknown mixture.
      TextDataError: what building raises.
    """
    folder = pathlib.Path(config.corpus_folder or _default_folder(config))
    _check_before_building(config, schedule)
    if jax.process_index() == 0:
        build_corpus(config.corpus, folder, report=say)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("corpus")
    train, held_out = TextShards(folder / "train"), TextShards(folder / "held_out")
    _check_vocabulary(config, folder, train.vocab_size)
    mixtures, missing = {}, {}
    for name in dict.fromkeys(phase.mixture for phase in schedule.phases):
        whole = config.mixtures[name]
        mixtures[name] = whole.restricted_to(train.domains)
        missing[name] = [d for d, w in whole.weights.items() if w > 0 and d not in train.domains]
    return Corpus(folder, train, held_out, mixtures, missing)


def _check_before_building(config: PretrainConfig, schedule: PhaseSchedule) -> None:
    """What can be known to be wrong before minutes have gone into a corpus."""
    for phase in schedule.phases:
        if phase.mixture not in config.mixtures:
            raise PretrainError(
                f"Phase {phase.name} uses the mixture {phase.mixture!r}; --config.mixtures has "
                f"{', '.join(config.mixtures)}."
            )
        for domain in config.mixtures[phase.mixture].weights:
            try:
                check_domain(domain, config.corpus.extra_domains)
            except TextDataError as error:
                raise PretrainError(
                    f"--config.mixtures.{phase.mixture}.weights: {error}"
                ) from error
    if not config.corpus.tokenizer:
        _check_vocabulary(config, "the corpus", config.corpus.bpe.vocab_size)


def _check_vocabulary(config: PretrainConfig, where, size: int) -> None:
    if size > config.model.vocab_size:
        raise PretrainError(
            f"The tokenizer of {where} has {size} tokens, the model only "
            f"model.vocab_size={config.model.vocab_size}; set --config.model.vocab_size={size} "
            f"or --config.corpus.bpe.vocab_size={config.model.vocab_size}."
        )


def _default_folder(config: PretrainConfig) -> pathlib.Path:
    # With the default limits: other rules make another corpus.
    rules = repr((FilterConfig(), sorted(DEFAULT_FILTERS.items())))
    # A comparison of vocabularies changes none of its tokens.
    corpus = to_dict(dataclasses.replace(config.corpus, compare=False))
    text = json.dumps([corpus, rules, *_user_files(config)], sort_keys=True)
    return cache_dir() / "corpora" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _user_files(config: PretrainConfig) -> list[list]:
    """[path, bytes, time] of the user's own files, so that changed or other ones under the same
    relative path make another corpus."""
    found = []
    for name in (*(source.path for source in config.corpus.sources), config.corpus.tokenizer):
        if not name:
            continue
        root = pathlib.Path(name).resolve()
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for path in files:
            about = path.stat() if path.exists() else None
            found.append([str(path), about and about.st_size, about and about.st_mtime_ns])
    return found
