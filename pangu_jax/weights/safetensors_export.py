"""A decoder's parameters as a Hugging Face directory that `transformers` and others read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.sharding import unbox
from pangu_jax.weights.assemble import DTYPES, check_dtype
from pangu_jax.weights.errors import WeightsError, require
from pangu_jax.weights.hf_config import config_to_hf, tensor_names
from pangu_jax.weights.mapping import MappedTensor, map_tensors
from pangu_jax.weights.safetensors_import import INDEX
from pangu_jax.weights.tokenizer_export import special_ids, write_tokenizer
from pangu_jax.weights.tokenizer_import import LoadedTokenizer


def export_safetensors(
    config: DecoderConfig,
    params: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 1 << 30,
    max_length: int = 8192,
    tokenizer: LoadedTokenizer | None = None,
    extra_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes config.json, *.safetensors and the tokenizer's files; returns the folder.

    The folder appears complete or not at all. One shard of tensors is in memory at a time.

    Args:
      config, params: of the decoder; arrays may be NumPy or jax, boxed or not.
      folder: must not exist yet, or be empty.
      dtype: 'float32', 'bfloat16' or 'float16'; None keeps each array's type.
      max_shard_bytes: start a new file before this many bytes (a larger tensor gets its own).
      max_length: longest context, in tokens, for config.json.
      tokenizer: written beside the weights, its special ids into config.json.
      extra_config: more entries of config.json.

    Raises:
      WeightsError: a folder with content, a parameter missing or of the wrong shape, a
        combination of features that no family has, an unknown dtype.
    """
    wanted = check_dtype(dtype)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder} exists and is not an empty folder; name a new one.")
    flat = _flatten(unbox(params))
    tensors = map_tensors(config, tensor_names(config))
    _check(flat, tensors, config)
    stored = str(wanted or flat["embed", "embedding"].dtype)
    values = config_to_hf(config, dtype=stored, max_length=max_length)
    if tokenizer is not None:
        values |= special_ids(tokenizer)
    values |= extra_config or {}

    scratch = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        _write_json(scratch / "config.json", values)
        _write_shards(scratch, flat, _shards(tensors, flat, wanted, max_shard_bytes), wanted)
        if tokenizer is not None:
            write_tokenizer(tokenizer, scratch, max_length=max_length)
        if folder.exists():
            folder.rmdir()
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


def _write_shards(folder, flat, shards, wanted) -> None:
    save_file = require("safetensors.numpy").save_file
    where, total = {}, 0
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            name = "model.safetensors"
        arrays = {tensor.name: _theirs(tensor, flat[tensor.path], wanted) for tensor in shard}
        save_file(arrays, folder / name, metadata={"format": "pt"})
        # The library's files are for their owner alone, whatever the umask says.
        shutil.copymode(folder / "config.json", folder / name)
        where |= dict.fromkeys(arrays, name)
        total += sum(array.nbytes for array in arrays.values())
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _shards(tensors: Sequence[MappedTensor], flat, wanted, limit: int) -> list[list[MappedTensor]]:
    """Tensors in the order of layers, cut where the next would exceed the limit."""
    order = sorted(tensors, key=lambda t: (t.layer is None, t.layer or 0))
    shards: list[list[MappedTensor]] = [[]]
    used = 0
    for tensor in order:
        width = (wanted or np.dtype(flat[tensor.path].dtype)).itemsize
        size = int(np.prod(tensor.shape)) * width
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += size
    return shards


def _theirs(tensor: MappedTensor, array, wanted) -> np.ndarray:
    own = np.asarray(array if tensor.layer is None else array[tensor.layer])
    return tensor.to_theirs(own if wanted is None else own.astype(wanted))


def _flatten(tree, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat = {}
    for key, value in tree.items():
        below = (*path, key)
        flat |= _flatten(value, below) if isinstance(value, Mapping) else {below: value}
    return flat


def _check(flat, tensors: Sequence[MappedTensor], config: DecoderConfig) -> None:
    shapes = {t.path: t.ours if t.layer is None else (config.num_layers, *t.ours) for t in tensors}
    for path, shape in shapes.items():
        if path not in flat:
            raise WeightsError(f"The parameters lack {'/'.join(path)}, which the config asks for.")
        if tuple(flat[path].shape) != shape:
            raise WeightsError(
                f"Parameter {'/'.join(path)} has shape {list(flat[path].shape)}; {list(shape)} is "
                "needed by the config."
            )
        found = str(flat[path].dtype)
        if found not in DTYPES:
            raise WeightsError(
                f"Parameter {'/'.join(path)} is {found}; written are {', '.join(DTYPES)}."
            )
    extra = ["/".join(path) for path in flat if path not in shapes]
    if extra:
        raise WeightsError(
            f"The parameters hold {', '.join(extra[:3])}, which the config does not have; written "
            "out, the model would be another one."
        )


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
