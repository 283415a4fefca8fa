"""GGUF files as a decoder's configuration and parameters.

The file is memory-mapped and every quantised tensor is expanded on its own, a block of rows at a
time, so the peak is the finished parameters plus one tensor.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.sharding import DEFAULT_RULES, Rules
from pangu_jax.weights.assemble import assemble, check_dtype
from pangu_jax.weights.errors import WeightsError, require
from pangu_jax.weights.gguf_config import (
    ROPE_FACTORS,
    TENSOR_NAMES,
    Metadata,
    config_from_gguf,
    is_interleaved,
)
from pangu_jax.weights.gguf_header import check_header
from pangu_jax.weights.mapping import MappedTensor, check_inventory, map_tensors

_BLOCK_ROWS = 4096


class GgufFile(NamedTuple):
    """An opened file: its metadata and, by name, the reader's tensors (data still quantised)."""

    path: str
    metadata: Metadata
    tensors: dict[str, Any]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, outputs first (the file lists axes the other way round)."""
        return {n: tuple(int(x) for x in reversed(t.shape)) for n, t in self.tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor expanded to float32.

        Raises:
          WeightsError: a quantisation that cannot be expanded.
        """
        from gguf.quants import dequantize

        tensor, shape = self.tensors[name], self.shapes()[name]
        try:
            if len(shape) < 2:
                return dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            out = np.empty(shape, np.float32)
            for start in range(0, shape[0], _BLOCK_ROWS):
                rows = slice(start, start + _BLOCK_ROWS)
                out[rows] = dequantize(tensor.data[rows], tensor.tensor_type)
            return out
        except NotImplementedError as error:
            raise WeightsError(
                f"{self.path}: tensor {name} is stored as {tensor.tensor_type.name}, which cannot "
                "be expanded; take another quantisation of this model (Q4_0 ... Q8_0, K-quants, "
                "IQ-quants, F16, BF16, F32 can)."
            ) from error


def open_gguf(path: str | os.PathLike) -> GgufFile:
    """Opens a file and checks that it is whole and of a known architecture.

    Raises:
      WeightsError: no such file, no GGUF, truncated, one part of several, unknown architecture.
    """
    gguf = require("gguf")
    source = os.fspath(path)
    if not Path(path).is_file():
        raise WeightsError(f"There is no file {source}.")
    check_header(source)
    try:
        reader = gguf.GGUFReader(source)
    except Exception as error:  # whatever the reader stumbles over in a damaged file
        raise WeightsError(
            f"{source} is truncated or no GGUF file ({type(error).__name__}: {error}); "
            "fetch it again."
        ) from error
    metadata = Metadata(reader.fields, source)
    parts = metadata.get("split.count", 1)
    if parts > 1:
        raise WeightsError(
            f"{source} is one of {parts} parts; merge them into one file first (llama.cpp's "
            "gguf-split --merge)."
        )
    return GgufFile(source, metadata, {tensor.name: tensor for tensor in reader.tensors})


def import_gguf(
    path: str | os.PathLike | GgufFile,
    *,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
) -> tuple[DecoderConfig, dict[str, Any]]:
    """(config, parameters) of a GGUF file of architecture llama, qwen2 or qwen3.

    Args:
      path: the file, or an opened one.
      dtype: of the parameters, also the config's compute type: 'float32', 'bfloat16', 'float16';
        None means float32, to which everything is expanded.
      mesh, rules: places each parameter by its logical axes as soon as it is complete.

    Returns:
      The parameters are NumPy arrays without a mesh, jax arrays with one.

    Raises:
      WeightsError: whatever `open_gguf` refuses, a missing, misshapen or unknown tensor, an
        unsupported quantisation or feature, an unknown dtype.
    """
    check_dtype(dtype)
    file = path if isinstance(path, GgufFile) else open_gguf(path)
    factors = file.read(ROPE_FACTORS) if ROPE_FACTORS in file.tensors else None
    config = config_from_gguf(file.metadata, file.shapes(), factors)
    tensors = map_tensors(
        config, TENSOR_NAMES, interleaved=is_interleaved(file.metadata.architecture)
    )
    check_inventory(file.shapes(), tensors, file.path, ignored=(ROPE_FACTORS,))
    dtype = dtype or "float32"

    def read(tensor: MappedTensor) -> np.ndarray:
        return file.read(tensor.name)

    params = assemble(config, tensors, read, dtype=dtype, mesh=mesh, rules=rules)
    return dataclasses.replace(config, dtype=dtype), params
