"""Histories on disk: one array_record record per user, read at random through grain.

Folder layout: manifest.json, lengths.npy (int32 [U]), users.parquet and items.parquet (column `id`
in dense order), shard-*.array_record. Record of a user with n events, little-endian: int64 user,
int32 [n] items, int64 [n] timestamps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.vocabulary import Vocabulary

FORMAT = 1
MANIFEST = "manifest.json"
_HEADER = 8
_EVENT = 12


def encode_record(user: int, items: np.ndarray, timestamps: np.ndarray) -> bytes:
    """Bytes of one user's record."""
    head = np.int64(user).astype("<i8").tobytes()
    return head + items.astype("<i4").tobytes() + timestamps.astype("<i8").tobytes()


def decode_record(record: bytes) -> tuple[int, np.ndarray, np.ndarray]:
    """(user, items int32 [n], timestamps int64 [n]), views of the record."""
    count = (len(record) - _HEADER) // _EVENT
    user = int(np.frombuffer(record, "<i8", 1)[0])
    items = np.frombuffer(record, "<i4", count, offset=_HEADER)
    return user, items, np.frombuffer(record, "<i8", count, offset=_HEADER + 4 * count)


class ArrayRecordSequences:
    """A `SequenceSource` over a folder that `out_of_core.preprocess` wrote.

    Only the lengths (4 bytes a user) stay in memory.

    Raises:
      DataError: no finished data set in the folder, a shard missing or damaged.
    """

    def __init__(self, folder: str | Path):
        import grain

        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise DataError(
                f"{self.folder} holds no finished data set (no {MANIFEST}); run "
                "recsys_jax.data.out_of_core.preprocess, which continues where it stopped."
            )
        self.manifest: dict[str, Any] = json.loads(path.read_text())
        if self.manifest.get("format") != FORMAT:
            raise DataError(
                f"{path} has format {self.manifest.get('format')!r}, this version reads {FORMAT}; "
                "preprocess the log again."
            )
        self.num_items = int(self.manifest["num_items"])
        self.lengths = np.load(self.folder / "lengths.npy", allow_pickle=False).astype(np.int64)
        shards = [self.folder / shard["file"] for shard in self.manifest["shards"]]
        for shard, about in zip(shards, self.manifest["shards"], strict=True):
            if not shard.is_file() or shard.stat().st_size != about["bytes"]:
                raise DataError(
                    f"{shard} is missing or does not have its {about['bytes']} bytes; delete "
                    f"{self.folder} and preprocess the log again."
                )
        self._records = grain.sources.ArrayRecordDataSource([str(shard) for shard in shards])

    @property
    def num_users(self) -> int:
        return len(self.lengths)

    def item_vocabulary(self) -> Vocabulary:
        """Original item ids by dense id."""
        return Vocabulary.load(self.folder / "items.parquet")

    def user_ids(self) -> np.ndarray:
        """Original user ids [U]."""
        return Vocabulary.load(self.folder / "users.parquet").ids[1:]

    def ranges(
        self, users: np.ndarray, starts: np.ndarray, stops: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `SequenceSource.ranges`; one batched read, each user's record once."""
        users = np.asarray(users, np.int64)
        if not len(users):
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        unique, which = np.unique(users, return_inverse=True)
        records = [decode_record(r) for r in self._records.__getitems__(unique.tolist())]
        for expected, (found, items, _) in zip(unique.tolist(), records, strict=True):
            if found != expected or len(items) != self.lengths[expected]:
                raise DataError(
                    f"{self.folder}: the record of user number {expected} is damaged; delete the "
                    "folder and preprocess the log again."
                )
        parts = list(zip(which.tolist(), np.asarray(starts), np.asarray(stops), strict=True))
        items = np.concatenate([records[k][1][a:b] for k, a, b in parts])
        return items, np.concatenate([records[k][2][a:b] for k, a, b in parts])

    def timestamp_quantile(self, fraction: float) -> int:
        """See `SequenceSource.timestamp_quantile`; from the manifest's table of quantiles."""
        table = self.manifest["timestamp_quantiles"]
        return int(table[round(fraction * (len(table) - 1))])
