"""Writes cleaned documents as tokenised array_record shards, split by hash, resumable.

Folder: tokenizer.json, train/ and held_out/, each with shard-*.array_record, shard-*.npy (the
index) and, once everything is written, manifest.json. Every `shard_tokens` tokens the open shards
of both splits are closed and the place in the stream of documents is noted; an interrupted run
that is given the same documents again goes on from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pangu_jax.data.text.clean import Scored
from pangu_jax.data.text.document import text_digest
from pangu_jax.data.text.errors import TextDataError
from pangu_jax.data.text.records import (
    FORMAT,
    INDEX,
    MANIFEST,
    SPLITS,
    Record,
    encode_record,
    token_dtype,
)
from pangu_jax.data.tokenizer import as_plain_text, save_tokenizer, tokenizer_hash
from pangu_jax.data.wheel import locked

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
_STATE = "progress.json"
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class ShardConfig:
    """eod_token: name of the end-of-document token. held_out: share of the documents, by hash of
    the text, that go into held_out/. shard_tokens: tokens (both splits together) between two
    places where an interrupted run can go on.
    """

    eod_token: str = "<|eod|>"
    held_out: float = 0.01
    shard_tokens: int = 20_000_000

    def __post_init__(self):
        if not 0 <= self.held_out < 1:
            raise TextDataError(f"held_out must lie in [0, 1), got {self.held_out}.")
        if self.shard_tokens < 1:
            raise TextDataError(f"shard_tokens must be at least 1, got {self.shard_tokens}.")


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out split: a fixed function of its bytes."""
    return int.from_bytes(text_digest(text)[:8], "little") < share * 2.0**64


def is_sampled(text: str, share: float) -> bool:
    """Whether a text belongs to a sample of this share, whatever split it is in."""
    return share >= 1 or int.from_bytes(text_digest(text)[8:16], "little") < share * 2.0**64


def write_shards(
    documents: Iterable[Scored],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    corpus: str = "",
    config: ShardConfig | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Tokenises documents into shards; does nothing if that was finished before.

    Args:
      documents: what `clean` yields; read lazily, and on resumption again from the start.
      tokenizer: set to take special tokens inside a text as plain text.
      corpus: names the documents and how they were made (for instance the JSON of the sources);
        a folder of another corpus, tokenizer or setting is refused.
      overwrite: throw away what another corpus has left in the folder.
      report: called with a line of text at every finished shard.

    Returns:
      The folder; open it with `TextShards(folder / 'train')`.

    Raises:
      TextDataError: eod_token is not in the vocabulary, a foreign folder, other documents than
        before the interruption.
    """
    config, folder = config or ShardConfig(), Path(folder)
    eod = tokenizer.token_to_id(config.eod_token)
    if eod is None:
        raise TextDataError(
            f"The tokenizer has no token {config.eod_token!r}; set eod_token to its "
            "end-of-document token."
        )
    settings = [FORMAT, tokenizer_hash(tokenizer), dataclasses.asdict(config), corpus]
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        state = _load_state(folder, fingerprint, overwrite)
        if state["complete"]:
            return folder
        save_tokenizer(tokenizer, folder / TOKENIZER)
        writer = _Writer(folder, state, token_dtype(tokenizer.get_vocab_size()))
        stream = _remaining(iter(documents), state)
        as_plain_text(tokenizer)
        while batch := list(itertools.islice(stream, _BATCH)):
            texts = [scored.document.text for scored in batch]
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for scored, encoding in zip(batch, encodings, strict=True):
                writer.add(scored, encoding.ids, is_held_out(scored.document.text, config.held_out))
                if writer.open_tokens >= config.shard_tokens:
                    report(writer.close_shards())
        report(writer.close_shards())
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "corpus": corpus,
            "tokenizer_sha256": tokenizer_hash(tokenizer),
            "vocab_size": tokenizer.get_vocab_size(),
            "eod_id": eod,
            "eod_token": config.eod_token,
            "documents_sha256": state["chain"],
        }
        for split in SPLITS:
            (folder / split).mkdir(exist_ok=True)
            _write_json(folder / split / MANIFEST, manifest | writer.summary(split))
        _write_json(folder / _STATE, state | {"complete": True})
    return folder


class _Writer:
    """The open shard of each split; `state` (JSON-ready) is what has been closed."""

    def __init__(self, folder: Path, state: dict[str, Any], dtype: np.dtype):
        self._folder, self._state, self._dtype = folder, state, dtype
        self._open: dict[str, tuple[Any, list]] = {}
        self._seen = 0
        self._chain = state["chain"]
        self.open_tokens = 0

    def add(self, scored: Scored, ids: list[int], held_out: bool) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        split = SPLITS[held_out]
        if split not in self._open:
            target = self._folder / split / f"{self._name()}.array_record.part"
            target.parent.mkdir(exist_ok=True)
            # Group size 1: reading one document unpacks no other.
            self._open[split] = (ArrayRecordWriter(str(target), "group_size:1,uncompressed"), [])
        document, domains = scored.document, self._state["domains"]
        if document.domain not in domains:
            domains.append(document.domain)
        code = domains.index(document.domain)
        name = f"{document.source}/{document.id}"
        record = Record(np.asarray(ids), code, scored.quality, scored.difficulty, name)
        handle, index = self._open[split]
        handle.write(encode_record(record, self._dtype))
        index.append((len(ids), code, scored.quality, scored.difficulty))
        totals = self._state["totals"].setdefault(split, {}).setdefault(document.domain, [0, 0, 0])
        for i, value in enumerate((1, len(ids), len(document.text.encode("utf-8")))):
            totals[i] += value
        self._seen += 1
        self._chain = _chained(self._chain, scored)
        self.open_tokens += len(ids)

    def close_shards(self) -> str:
        """Puts the open shards in place, then notes how far the stream has been read."""
        for split, (handle, index) in self._open.items():
            handle.close()
            target = self._folder / split / f"{self._name()}.array_record"
            table = np.array(index, INDEX)
            with open(target.with_suffix(".npy.part"), "wb") as out:
                np.save(out, table)
            os.replace(target.with_suffix(".npy.part"), target.with_suffix(".npy"))
            os.replace(target.with_name(target.name + ".part"), target)
            with open(target, "rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            self._state["shards"].setdefault(split, []).append(
                {
                    "file": target.name,
                    "documents": len(table),
                    "tokens": int(table["length"].sum(dtype=np.int64)),
                    "bytes": target.stat().st_size,
                    "sha256": digest,
                }
            )
        self._open = {}
        self._state["round"] += 1
        self._state["consumed"] += self._seen
        self._state["chain"] = self._chain
        self._seen = self.open_tokens = 0
        _write_json(self._folder / _STATE, self._state)
        return f"round {self._state['round']}: {self._state['consumed']} documents written"

    def summary(self, split: str) -> dict[str, Any]:
        totals = self._state["totals"].get(split, {})
        return {
            "domains": self._state["domains"],
            "shards": self._state["shards"].get(split, []),
            "counts": {
                domain: {"documents": d, "tokens": t, "bytes": b}
                for domain, (d, t, b) in sorted(totals.items())
            },
        }

    def _name(self) -> str:
        return f"shard-{self._state['round']:05d}"


def _load_state(folder: Path, fingerprint: str, overwrite: bool) -> dict[str, Any]:
    path = folder / _STATE
    if path.is_file():
        state = json.loads(path.read_text())
        if state["fingerprint"] == fingerprint:
            return state
        if not overwrite:
            raise TextDataError(
                f"{folder} holds shards of another corpus, tokenizer or setting; choose an empty "
                "folder, or pass overwrite=True to replace them."
            )
        path.unlink()
        for split in SPLITS:
            shutil.rmtree(folder / split, ignore_errors=True)
    return {
        "fingerprint": fingerprint,
        "complete": False,
        "round": 0,
        "consumed": 0,
        "chain": "",
        "domains": [],
        "totals": {},
        "shards": {},
    }


def _remaining(stream: Iterator[Scored], state: dict[str, Any]) -> Iterator[Scored]:
    """The stream behind the documents that are in closed shards, which must be the same again."""
    chain = ""
    for scored in itertools.islice(stream, state["consumed"]):
        chain = _chained(chain, scored)
    if chain != state["chain"]:
        raise TextDataError(
            f"The first {state['consumed']} documents are not those of the interrupted run: a "
            "source or a setting of the cleaning has changed. Pass overwrite=True to start again."
        )
    return stream


def _chained(chain: str, scored: Scored) -> str:
    document = scored.document
    state = hashlib.sha256(chain.encode())
    state.update(f"{document.domain}\0{document.source}\0{document.id}\0".encode())
    state.update(text_digest(document.text))
    return state.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(value, indent=1))
    os.replace(scratch, path)
