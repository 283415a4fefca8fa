"""Random access to the tokenised documents of one or more shard folders."""

from __future__ import annotations

import collections
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.data.text.errors import TextDataError, choose_from
from pangu_jax.data.text.records import FORMAT, INDEX, MANIFEST, Record, decode_record, token_dtype

_KEPT_RECORDS = 64


class TextShards:
    """Documents of the folders that `write_shards` made (`.../train`, `.../held_out`), in order.

    Only the index (14 bytes a document) stays in memory.

    Attributes:
      index: structured array of `records.INDEX`; `domain` counts into `domains`.
      domains: names of the domains over all folders.
      eod_id, vocab_size, tokenizer_sha256: of the tokenizer, the same in all folders.

    Args:
      folders: one folder or several; several are read one after the other.
      verify: also compare every shard's SHA-256.

    Raises:
      TextDataError: no finished shards, a shard missing or damaged, folders of different
        tokenizers.
    """

    def __init__(self, *folders: str | Path, verify: bool = False):
        import grain

        if not folders:
            raise TextDataError("TextShards needs at least one folder.")
        self.domains: list[str] = []
        parts, files = [], []
        first: dict[str, Any] = {}
        for folder in map(Path, folders):
            manifest = _manifest(folder)
            first = first or manifest
            for key in ("tokenizer_sha256", "eod_id"):
                if manifest[key] != first[key]:
                    raise TextDataError(
                        f"{folder} was written with another tokenizer ({key} {manifest[key]!r}) "
                        f"than {folders[0]} ({first[key]!r}); write it again with the same one."
                    )
            self.domains += [d for d in manifest["domains"] if d not in self.domains]
            codes = np.array([self.domains.index(d) for d in manifest["domains"]] or [0], np.uint16)
            for shard in manifest["shards"]:
                path = folder / shard["file"]
                _check(path, shard, verify)
                table = np.load(path.with_suffix(".npy"), allow_pickle=False)
                if table.dtype != INDEX or len(table) != shard["documents"]:
                    raise TextDataError(f"{path.with_suffix('.npy')} is damaged; write it again.")
                table["domain"] = codes[table["domain"]]
                parts.append(table)
                files.append(str(path))
        self.index = np.concatenate(parts) if parts else np.zeros(0, INDEX)
        self.eod_id = int(first["eod_id"])
        self.vocab_size = int(first["vocab_size"])
        self.tokenizer_sha256 = first["tokenizer_sha256"]
        self._dtype = token_dtype(self.vocab_size)
        self._records = grain.sources.ArrayRecordDataSource(files) if files else []
        # A document longer than a row is asked for once per row.
        self._recent: collections.OrderedDict[int, Record] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    def documents_of(self, domain: str) -> np.ndarray:
        """Numbers of the documents of a domain, int64 [M].

        Raises:
          TextDataError: no such domain here; names those there are.
        """
        if domain not in self.domains:
            raise choose_from(
                "domain", domain, self.domains, "Change the mixture's weights or the shards."
            )
        return np.flatnonzero(self.index["domain"] == self.domains.index(domain))

    def records(self, documents: Sequence[int]) -> list[Record]:
        """The documents with these numbers, one batched read for those not read just before."""
        wanted = list(dict.fromkeys(int(d) for d in documents))
        with self._lock:
            known = {d: self._recent[d] for d in wanted if d in self._recent}
        missing = [d for d in wanted if d not in known]
        if missing:
            for number, raw in zip(missing, self._records.__getitems__(missing), strict=True):
                known[number] = self._decode(number, raw)
            with self._lock:
                for number in missing:
                    self._recent[number] = known[number]
                while len(self._recent) > _KEPT_RECORDS:
                    self._recent.popitem(last=False)
        return [known[int(d)] for d in documents]

    def _decode(self, number: int, raw: bytes) -> Record:
        try:
            record = decode_record(raw, self._dtype)
            if len(record.tokens) != self.index["length"][number]:
                raise ValueError(f"{len(record.tokens)} tokens")
        except ValueError as error:
            raise TextDataError(
                f"Document number {number} of the shards is damaged ({error}); write the shards "
                "again, or open them with verify=True to find the file."
            ) from error
        return record


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        below = [split for split in ("train", "held_out") if (folder / split / MANIFEST).is_file()]
        hint = f" Did you mean {folder / below[0]}?" if below else ""
        raise TextDataError(
            f"{folder} holds no finished shards (no {MANIFEST}).{hint} write_shards continues "
            "where it was interrupted."
        )
    manifest = json.loads(path.read_text())
    if manifest.get("format") != FORMAT:
        raise TextDataError(
            f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT}; write "
            "the shards again."
        )
    return manifest


def _check(path: Path, about: dict[str, Any], verify: bool) -> None:
    if not path.is_file() or path.stat().st_size != about["bytes"]:
        raise TextDataError(
            f"{path} is missing or does not have its {about['bytes']} bytes; write it again."
        )
    if verify:
        with open(path, "rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != about["sha256"]:
                raise TextDataError(f"{path} does not have its SHA-256; write it again.")
