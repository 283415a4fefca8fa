"""Blocks of every quantised GGUF type: bytes drawn at random, scales written explicitly.

The gguf package quantises to a few types only, but any bytes with finite scales are a valid block,
and random ones reach every code of a type. Where a type's scales lie: ggml-common.h of the ggml
project.
"""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

# Byte of the float16 scale in a block; of the float16 offset, and how many scales it is worth so
# that values lie around 0.
_SCALE = {
    Kind.Q4_0: 0, Kind.Q4_1: 0, Kind.Q5_0: 0, Kind.Q5_1: 0, Kind.Q8_0: 0, Kind.Q2_K: 80,
    Kind.Q3_K: 108, Kind.Q4_K: 0, Kind.Q5_K: 0, Kind.Q6_K: 208, Kind.IQ1_S: 0, Kind.IQ2_XXS: 0,
    Kind.IQ2_XS: 0, Kind.IQ2_S: 0, Kind.IQ3_XXS: 0, Kind.IQ3_S: 0, Kind.IQ4_NL: 0, Kind.IQ4_XS: 0,
}  # fmt: skip
_OFFSET = {
    Kind.Q4_1: (2, -7.5), Kind.Q5_1: (2, -15.5), Kind.Q2_K: (82, 1.5), Kind.Q4_K: (2, 7.5),
    Kind.Q5_K: (2, 15.5),
}  # fmt: skip
# Not random bytes: plain numbers, and types whose codes do not fill a byte.
_FROM_VALUES = (Kind.F16, Kind.BF16, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4)

KINDS = (Kind.F32, *_FROM_VALUES, *_SCALE, Kind.IQ1_M)


def matrix(kind: Kind, shape: tuple[int, int], rng: np.random.Generator, *, std=0.06):
    """A matrix as GGUF stores it: float32, or uint8 (rows, bytes of a row), values around 0 with
    that standard deviation."""
    if kind == Kind.F32:
        return rng.normal(0, std, shape).astype(np.float32)
    if kind in _FROM_VALUES:
        return quantize(rng.normal(0, std, shape).astype(np.float32), kind)
    blocks, scale = _drawn(kind, shape, rng)
    unit = dequantize(blocks, kind)
    _set_scales(blocks, kind, scale * std / np.sqrt(np.mean(unit.astype(np.float64) ** 2)))
    return blocks.reshape(shape[0], -1)


def raw_blocks(kind: Kind, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Blocks of a quantised type, uint8 (n,), the same bits on every machine; scales near 1."""
    if kind in _FROM_VALUES:
        return quantize(rng.uniform(-1, 1, shape).astype(np.float32), kind).reshape(-1)
    return _drawn(kind, shape, rng)[0].reshape(-1)


def _drawn(kind, shape, rng) -> tuple[np.ndarray, np.ndarray]:
    elements, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.frombuffer(rng.bytes(shape[0] * shape[1] // elements * width), np.uint8)
    blocks = blocks.reshape(-1, width).copy()
    scale = rng.uniform(0.5, 1.5, len(blocks))
    _set_scales(blocks, kind, scale)
    return blocks, scale


def _set_scales(blocks: np.ndarray, kind: Kind, scale: np.ndarray) -> None:
    if kind == Kind.IQ1_M:  # four bits of the scale in the high end of each of four words
        bits = scale.astype(np.float16).view(np.uint16)
        for word in range(4):
            high = 48 + 2 * word + 1
            part = (bits >> (4 * word)) & 0xF
            blocks[:, high] = (blocks[:, high] & 0x0F) | (part << 4).astype(np.uint8)
        return
    _put(blocks, _SCALE[kind], scale)
    if kind in _OFFSET:
        at, worth = _OFFSET[kind]
        _put(blocks, at, worth * scale)


def _put(blocks: np.ndarray, at: int, values: np.ndarray) -> None:
    blocks[:, at : at + 2] = values.astype(np.float16)[:, None].view(np.uint8)
