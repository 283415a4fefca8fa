"""The header of a GGUF file: its keys and values, and where its tensors lie.

Read here rather than by the `gguf` package, whose reader trusts every length (a damaged count keeps
it busy for ever) and takes many seconds for the 300,000 strings of a large vocabulary.
Layout: the GGUF specification, version 3 (2 differs in nothing that matters here).
"""

from __future__ import annotations

import math
import mmap
import os
from typing import Any, NamedTuple

import numpy as np

from pangu_jax.weights.errors import WeightsError, require

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {
    number: np.dtype(code)
    for number, code in {
        0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
        10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip
_MAX_DIMENSIONS = 4


class StoredTensor(NamedTuple):
    """A tensor as the file holds it.

    kind: a gguf.GGMLQuantizationType. shape: outputs first (the file lists axes the other way
    round). data: its bytes, uint8 (n,), mapped from the file.
    """

    kind: Any
    shape: tuple[int, ...]
    data: np.ndarray


class Header(NamedTuple):
    """values: by key, texts still as bytes, arrays of numbers as NumPy arrays. tensors: by name."""

    values: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_header(path: str | os.PathLike) -> Header:
    """Keys, values and tensors of a file, which stays mapped as long as a tensor is in use.

    Raises:
      WeightsError: no GGUF file, another byte order or version, a tensor type that the installed
        `gguf` does not know, or anything that reaches beyond the file's end.
    """
    source = os.fspath(path)
    with open(source, "rb") as handle:
        if os.fstat(handle.fileno()).st_size < 24:
            raise WeightsError(f"{source} is truncated or no GGUF file (it is under 24 bytes).")
        data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    return _Walk(data, source).header()


class _Walk:
    """A position in the file; every step is checked against its end."""

    def __init__(self, data: mmap.mmap, source: str):
        self.data, self.source, self.at = data, source, 0

    def fail(self, why: str) -> None:
        raise WeightsError(
            f"{self.source} is truncated or no GGUF file ({why}, {len(self.data)} bytes in all); "
            "fetch it again."
        )

    def skip(self, count: int) -> int:
        """Moves on and returns where it was."""
        start = self.at
        if count > len(self.data) - start:
            self.fail(f"{count} bytes are announced at byte {start}")
        self.at = start + count
        return start

    def number(self, width: int) -> int:
        start = self.skip(width)
        return int.from_bytes(self.data[start : start + width], "little")

    def string(self) -> bytes:
        start = self.skip(self.number(8))
        return self.data[start : self.at]

    def text(self) -> str:
        """A name; one that is damaged is not worth an error of its own, nobody asks for it."""
        return self.string().decode("utf-8", "replace")

    def scalars(self, kind: int, count: int) -> np.ndarray:
        dtype = _SCALARS[kind]
        start = self.skip(count * dtype.itemsize)
        return np.frombuffer(self.data[start : self.at], dtype)

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalars(kind, 1)[0].item()
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            self.fail(f"a value of type {kind} before byte {self.at}")
        inner, count = self.number(4), self.number(8)
        if inner in _SCALARS:
            return self.scalars(inner, count)
        if inner != _STRING:
            self.fail(f"an array of type {inner}")
        if 8 * count > len(self.data) - self.at:  # before a list of so many is made
            self.fail(f"{count} strings are announced at byte {self.at}")
        return [self.string() for _ in range(count)]

    def header(self) -> Header:
        if self.data[self.skip(4) : 4] != _MAGIC:
            self.fail("it does not start with GGUF")
        version = self.number(4)
        if version not in (2, 3):
            self.fail(f"version {version} in little-endian order; read are 2 and 3")
        tensors, values = self.number(8), self.number(8)
        found = {}
        for _ in range(values):
            key = self.text()
            found[key] = self.value(self.number(4))
        listed = [self.tensor() for _ in range(tensors)]
        if len({name for name, *_ in listed}) != len(listed):
            self.fail("two tensors of one name")
        alignment = found.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            self.fail(f"general.alignment={alignment!r}")
        start = -(-self.at // alignment) * alignment
        whole = np.frombuffer(self.data, np.uint8)
        return Header(
            found,
            {
                name: StoredTensor(kind, shape, self.placed(whole, name, start + offset, size))
                for name, kind, shape, offset, size in listed
            },
        )

    def tensor(self) -> tuple[str, Any, tuple[int, ...], int, int]:
        """(name, kind, shape, offset, bytes)."""
        gguf = require("gguf")
        name, dimensions = self.text(), self.number(4)
        if dimensions > _MAX_DIMENSIONS:
            self.fail(f"a tensor of {dimensions} dimensions")
        shape = tuple(self.number(8) for _ in range(dimensions))[::-1]
        number, offset = self.number(4), self.number(8)
        try:
            kind = gguf.GGMLQuantizationType(number)
            block, width = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise WeightsError(
                f"{self.source}: tensor {name} has the type number {number}, which is unknown to "
                "the installed package gguf: the file is damaged, newer than the package (`pip "
                "install -U gguf`), or of a type that llama.cpp has dropped (such as Q4_0_4_4)."
            ) from error
        elements = math.prod(shape)
        if (shape[-1] if shape else 1) % block:
            self.fail(f"rows of {shape[-1]} elements in blocks of {block}")
        return name, kind, shape, offset, elements // block * width

    def placed(self, whole: np.ndarray, name: str, start: int, size: int) -> np.ndarray:
        if start + size > len(whole):
            self.fail(f"tensor {name} is announced up to byte {start + size}")
        return whole[start : start + size]
