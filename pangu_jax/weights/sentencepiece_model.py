"""tokenizer.model: SentencePiece's own file, for directories that carry nothing else.

The file is a protocol buffer of a few fields, read here without the library. Field numbers:
sentencepiece_model.proto of the SentencePiece project.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pangu_jax.weights.errors import WeightsError

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_BPE = 2


class SentencePieceModel(NamedTuple):
    """pieces, scores, types: by id (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    6 byte). charsmap: the library's compiled character map, empty for none. prefix: whether a text
    gets a space in front. collapse: whether runs of spaces become one and outer ones go.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    unknown: int
    charsmap: bytes
    prefix: bool
    collapse: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a tokenizer.model.

    Raises:
      WeightsError: a damaged file, or a model that is not BPE (its segmentation is another).
    """
    try:
        return _read(path.read_bytes(), path)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged or no tokenizer.model ({error}).") from error


def _read(data: bytes, path: Path) -> SentencePieceModel:
    pieces, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append(piece[1].decode("utf-8") if 1 in piece else "")
            scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
            types.append(piece.get(3, 1))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise WeightsError(f"{path} is damaged or no tokenizer.model (it holds no pieces).")
    if trainer.get(3, 1) != _BPE:
        raise WeightsError(
            f"{path} is a SentencePiece model of type {trainer.get(3, 1)}; only BPE (2) is read. "
            "Save the tokenizer as tokenizer.json with transformers."
        )
    return SentencePieceModel(
        pieces, scores, types,
        unknown=trainer.get(40, 0),
        charsmap=normalizer.get(2, b""),
        prefix=bool(normalizer.get(3, 1)),
        collapse=bool(normalizer.get(4, 1)),
    )  # fmt: skip


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message: an int, or the bytes of anything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        else:
            if wire == _BYTES:
                width, at = _varint(data, at)
            elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
                width = 8 if wire == _EIGHT_BYTES else 4
            else:
                raise IndexError(f"wire type {wire} at byte {at}")
            if width > len(data) - at:
                raise IndexError(f"{width} bytes are announced at byte {at}")
            value, at = data[at : at + width], at + width
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise IndexError(f"a number without end at byte {at}")
