"""A check that every length in a GGUF file's header fits into the file.

The reader of the `gguf` package trusts these numbers: a damaged count would keep it busy for ever.
Layout: the GGUF specification, version 3 (2 differs in nothing that matters here).
"""

from __future__ import annotations

import math
import mmap
import os
import struct

from pangu_jax.weights.errors import WeightsError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
# Bytes of a scalar by type: u8 i8 u16 i16 u32 i32 f32 bool, and (after string, array) u64 i64 f64.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_DIMENSIONS = 4


def check_header(path: str | os.PathLike) -> None:
    """Walks the header of a file.

    Raises:
      WeightsError: no GGUF file, another byte order or version, or a length beyond the file's end.
    """
    source = os.fspath(path)
    with open(source, "rb") as handle:
        if os.fstat(handle.fileno()).st_size < 24:
            raise WeightsError(f"{source} is truncated or no GGUF file (it is under 24 bytes).")
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data, source).header()


class _Walk:
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

    def number(self, code: str) -> int:
        return struct.unpack_from("<" + code, self.data, self.skip(struct.calcsize(code)))[0]

    def string(self) -> None:
        self.skip(self.number("Q"))

    def value(self, kind: int) -> None:
        if kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        elif kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in _WIDTHS:
                self.skip(count * _WIDTHS[inner])
            elif inner == _STRING:
                for _ in range(count):  # ends at the file's end: every string takes 8 bytes
                    self.string()
            else:
                self.fail(f"an array of type {inner}")
        else:
            self.fail(f"a value of type {kind} before byte {self.at}")

    def header(self) -> None:
        if self.data[self.skip(4) : 4] != _MAGIC:
            self.fail("it does not start with GGUF")
        version = self.number("I")
        if version not in (2, 3):
            self.fail(f"version {version} in little-endian order; read are 2 and 3")
        tensors, values = self.number("Q"), self.number("Q")
        for _ in range(values):
            self.string()
            self.value(self.number("I"))
        for _ in range(tensors):
            self.string()
            dimensions = self.number("I")
            if dimensions > _MAX_DIMENSIONS:
                self.fail(f"a tensor of {dimensions} dimensions")
            elements = math.prod(self.number("Q") for _ in range(dimensions))
            self.number("I")
            self.number("Q")
            # The densest type has more than one bit per element.
            if elements > 8 * len(self.data):
                self.fail(f"a tensor of {elements} elements")
