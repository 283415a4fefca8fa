"""GGUF files as a decoder's configuration and parameters.

The file is memory-mapped and every quantised tensor is expanded on its own, so the peak is the
finished parameters plus one tensor.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.sharding import DEFAULT_RULES, Rules
from pangu_jax.weights.assemble import DTYPES, assemble, check_dtype
from pangu_jax.weights.errors import WeightsError, require
from pangu_jax.weights.gguf_config import (
    ROPE_FACTORS,
    TENSOR_NAMES,
    Metadata,
    config_from_gguf,
    is_interleaved,
)
from pangu_jax.weights.gguf_header import StoredTensor, read_header
from pangu_jax.weights.mapping import MappedTensor, check_inventory, map_tensors

# Expanded at a time: few enough to stay in a core's cache, enough to make Python's part small.
_CHUNK = 1 << 16
_PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": DTYPES["bfloat16"]}
_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"
_PART = re.compile(r"-(\d{5})-of-(\d{5})(\.gguf)$")


class GgufFile(NamedTuple):
    """An opened file (or all parts of one): metadata and, by name, tensors still quantised."""

    path: str
    metadata: Metadata
    tensors: dict[str, StoredTensor]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, outputs first."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def decoder_config(self) -> DecoderConfig:
        """From the metadata and the shapes of the tensors; WeightsError as `config_from_gguf`."""
        factors = self.read(ROPE_FACTORS) if ROPE_FACTORS in self.tensors else None
        return config_from_gguf(self.metadata, self.shapes(), factors)

    def read(self, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
        """One tensor expanded to `dtype`; read-only, without a copy, where it is stored so.

        Raises:
          WeightsError: a quantisation that cannot be expanded.
        """
        from gguf import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        kind, shape, data = self.tensors[name]
        plain = _PLAIN.get(kind.name)
        if plain is not None:
            return data.view(plain).reshape(shape).astype(dtype, copy=False)
        block, width = GGML_QUANT_SIZES[kind]
        out = np.empty(math.prod(shape), dtype)
        step = max(_CHUNK // block, 1)
        try:
            for start in range(0, len(data) // width, step):
                # As one long row: the package goes through sixteen rows at a time otherwise.
                part = data[start * width : (start + step) * width].reshape(1, -1)
                expanded = dequantize(part, kind)
                out[start * block : (start + step) * block] = expanded.reshape(-1)
        except NotImplementedError as error:
            raise WeightsError(
                f"{self.path}: tensor {name} is stored as {kind.name}, which cannot "
                "be expanded; take another quantisation of this model (Q4_0 ... Q8_0, K-quants, "
                "IQ-quants, F16, BF16, F32 can)."
            ) from error
        return out.reshape(shape)


def open_gguf(path: str | os.PathLike) -> GgufFile:
    """Opens a file, or all parts of one that was split, and checks that it is whole.

    Args:
      path: the file; of a split one (name-00001-of-00003.gguf) any part, the others lie beside it.

    Raises:
      WeightsError: no such file, no GGUF, truncated, a part missing or of another model, an
        unknown architecture.
    """
    require("gguf")
    source = os.fspath(path)
    if not Path(path).is_file():
        raise WeightsError(f"There is no file {source}.")
    header = read_header(source)
    count = header.values.get(_COUNT, 1)
    if count != 1:
        return _open_parts(source, count)
    return GgufFile(source, Metadata(header.values, source), header.tensors)


def _open_parts(source: str, count: Any) -> GgufFile:
    """All parts as one file; the first holds the metadata."""
    named = _PART.search(source)
    if not named or int(named[2]) != count:
        raise WeightsError(
            f"{source} says {_COUNT}={count}, so it is one part of several; they must lie in one "
            "folder under the names that llama.cpp's gguf-split gives, name-00001-of-0000N.gguf."
        )
    paths = [
        f"{source[: named.start()]}-{number:05d}-of-{named[2]}{named[3]}"
        for number in range(1, count + 1)
    ]
    missing = [each for each in paths if not Path(each).is_file()]
    if missing:
        raise WeightsError(f"{source} is one of {count} parts; {missing[0]} is missing.")
    headers = [read_header(each) for each in paths]
    tensors: dict[str, StoredTensor] = {}
    for number, (each, header) in enumerate(zip(paths, headers, strict=True)):
        found = header.values.get(_COUNT), header.values.get(_NUMBER)
        if found != (count, number):
            raise WeightsError(
                f"{each} says {_COUNT}={found[0]} and {_NUMBER}={found[1]}; its name says "
                f"{count} and {number}."
            )
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise WeightsError(f"Tensor {min(twice)} is in two parts; the second is {each}.")
        tensors |= header.tensors
    wanted = headers[0].values.get(_TENSORS, len(tensors))
    if wanted != len(tensors):
        raise WeightsError(
            f"{paths[0]} says {_TENSORS}={wanted}; its {count} parts hold {len(tensors)}."
        )
    return GgufFile(paths[0], Metadata(headers[0].values, paths[0]), tensors)


def import_gguf(
    path: str | os.PathLike | GgufFile,
    *,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
) -> tuple[DecoderConfig, dict[str, Any]]:
    """(config, parameters) of a GGUF file: llama, qwen2, qwen3 or pangu-embedded.

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
    config = file.decoder_config()
    tensors = map_tensors(
        config, TENSOR_NAMES, interleaved=is_interleaved(file.metadata.architecture)
    )
    check_inventory(file.shapes(), tensors, file.path, ignored=(ROPE_FACTORS,))
    dtype = dtype or "float32"

    def read(tensor: MappedTensor) -> np.ndarray:
        return file.read(tensor.name, DTYPES[dtype])

    params = assemble(config, tensors, read, dtype=dtype, mesh=mesh, rules=rules)
    return dataclasses.replace(config, dtype=dtype), params
