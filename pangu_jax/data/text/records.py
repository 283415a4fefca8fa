"""The bytes of one document on disk, and the table that says what a shard holds.

Record, little-endian: uint16 domain code, uint16 bytes of the name, float32 quality, float32
difficulty, uint32 number of tokens, the name ('source/id', UTF-8), the token ids (uint16 where the
vocabulary allows it, else uint32). The end-of-document token is not stored.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "held_out")

# One entry per record, in the order of the records; kept beside each shard as .npy.
INDEX = np.dtype([("length", "<u4"), ("domain", "<u2"), ("quality", "<f4"), ("difficulty", "<f4")])
_HEADER = struct.Struct("<HHffI")
_MAX_NAME = 1000


class Record(NamedTuple):
    """tokens: int32 [N], without end-of-document. domain: code, see the manifest."""

    tokens: np.ndarray
    domain: int
    quality: float
    difficulty: float
    name: str


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 that holds the ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def encode_record(record: Record, dtype: np.dtype) -> bytes:
    """Bytes of a record; names beyond 1,000 bytes are cut."""
    name = record.name.encode("utf-8")[:_MAX_NAME]
    head = _HEADER.pack(
        record.domain, len(name), record.quality, record.difficulty, len(record.tokens)
    )
    return head + name + np.asarray(record.tokens).astype(dtype).tobytes()


def decode_record(raw: bytes, dtype: np.dtype) -> Record:
    """The record of these bytes; ValueError if they are cut short."""
    domain, name_size, quality, difficulty, count = _HEADER.unpack_from(raw)
    at = _HEADER.size + name_size
    if len(raw) != at + count * dtype.itemsize:
        raise ValueError(f"record of {len(raw)} bytes, {at + count * dtype.itemsize} expected")
    name = raw[_HEADER.size : at].decode("utf-8", errors="replace")
    tokens = np.frombuffer(raw, dtype, count, offset=at).astype(np.int32)
    return Record(tokens, domain, quality, difficulty, name)
