"""Hugging Face directories (config.json and *.safetensors) as configuration and parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.sharding import DEFAULT_RULES, Rules
from pangu_jax.weights.assemble import assemble, check_dtype
from pangu_jax.weights.errors import WeightsError, require
from pangu_jax.weights.hf_config import config_from_hf, tensor_names
from pangu_jax.weights.mapping import MappedTensor, check_inventory, map_tensors

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_STORED = ("F32", "BF16", "F16")
_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
# Old Llama directories store the rotary frequencies, which follow from the configuration.
_IGNORED = ("rotary_emb.inv_freq",)
# Files beside the weights that hold other tensors, or the same under their authors' names.
_OTHER_LAYOUTS = ("consolidated", "adapter_")


class _Tensors:
    """All tensors of a directory by name; files stay mapped until `stack` closes."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        library = require("safetensors")
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        listed = _index(folder)
        for name in sorted(set(listed.values())) if listed else _lone_files(folder):
            try:
                opened = stack.enter_context(library.safe_open(folder / name, "numpy"))
            except (library.SafetensorError, OSError) as error:
                raise WeightsError(
                    f"{folder / name} is missing, truncated or no safetensors file ({error}); "
                    "fetch it again."
                ) from error
            self._files[name] = opened
            for tensor in opened.keys():
                if tensor in self._where:
                    raise WeightsError(
                        f"Tensor {tensor} is in two files, {self._where[tensor]} and {name}."
                    )
                self._where[tensor] = name
        for tensor, name in listed.items():
            if self._where.get(tensor) != name:
                raise WeightsError(
                    f"{folder / INDEX} says that {tensor} is in {name}, which does not hold it."
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(self._files[file].get_slice(name).get_shape())
            for name, file in self._where.items()
        }

    def read(self, name: str) -> np.ndarray:
        file = self._files[self._where[name]]
        stored = file.get_slice(name).get_dtype()  # NumPy has no array for some of these
        if stored not in _STORED:
            raise WeightsError(
                f"Tensor {name} is stored as {stored}; read are {', '.join(_STORED)}."
            )
        return file.get_tensor(name)


def import_safetensors(
    folder: str | os.PathLike,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
) -> tuple[DecoderConfig, dict[str, Any]]:
    """(config, parameters) of a directory of Llama, Qwen2, Qwen3 or openPangu's dense model.

    Args:
      folder: holds config.json and *.safetensors, with or without model.safetensors.index.json.
      dtype: of the parameters: 'float32', 'bfloat16', 'float16'; None keeps the stored type. The
        config's compute type is that of the embedding.
      mesh, rules: places each parameter by its logical axes as soon as it is complete.

    Returns:
      The parameters are NumPy arrays without a mesh, jax arrays with one.

    Raises:
      WeightsError: no such folder, an unknown architecture or feature, a truncated file, a
        missing, misshapen or unknown tensor, an index that points outside the folder.
    """
    check_dtype(dtype)
    folder = Path(folder)
    source = folder / CONFIG
    config = config_from_hf(read_json(source), str(source))
    with contextlib.ExitStack() as stack:
        tensors = _Tensors(folder, stack)
        shapes = tensors.shapes()
        if config.num_layers > len(shapes):  # before a list of so many tensors is made
            raise WeightsError(
                f"{source}: num_hidden_layers={config.num_layers}, but {folder} holds "
                f"{len(shapes)} tensors."
            )
        names = tensor_names(config)
        if config.tie_embeddings and _HEAD in shapes and _EMBEDDING not in shapes:
            names["embed/embedding"] = _HEAD  # of a tied pair a file may keep either name
        elif config.tie_embeddings and _HEAD in shapes:
            _check_tied(tensors, shapes, str(folder))
            del shapes[_HEAD]
        mapped = map_tensors(config, names)
        check_inventory(shapes, mapped, str(folder), ignored=_IGNORED)

        def read(tensor: MappedTensor) -> np.ndarray:
            return tensors.read(tensor.name)

        params = assemble(config, mapped, read, dtype=dtype, mesh=mesh, rules=rules)
    stored = str(params["embed"]["embedding"].dtype)
    return dataclasses.replace(config, dtype=stored), params


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      WeightsError: no such file, or no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"There is no {path}; a Hugging Face directory is needed.") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds no JSON object.")
    return values


def _index(folder: Path) -> dict[str, str]:
    """Tensor name to file name, empty without an index file or with one file that holds all."""
    path = folder / INDEX
    if (folder / SINGLE).is_file() or not path.is_file():
        return {}
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise WeightsError(f"{path} has no weight_map.")
    for name in listed.values():
        # Backslash and drive letters too: the folder may be read on any system.
        if not isinstance(name, str) or Path(name).name != name or set(name) & set("\\:"):
            raise WeightsError(f"{path} names the file {name!r}, which leads out of the folder.")
    return listed


def _lone_files(folder: Path) -> list[str]:
    """Names of the files to read where no index says so.

    Raises:
      WeightsError: none that is in Hugging Face's layout.
    """
    if (folder / SINGLE).is_file():
        return [SINGLE]  # whatever else lies there: the same weights in their authors' layout
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    names = [name for name in names if not name.startswith(_OTHER_LAYOUTS)]
    if names:
        return names
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise WeightsError(
            f"{folder} holds {pickled[0]} but no *.safetensors file. A .bin file is a pickle, "
            "which can run code and is not read here; convert it with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    raise WeightsError(f"{folder} holds no *.safetensors file in Hugging Face's layout.")


def _check_tied(tensors: _Tensors, shapes, source: str) -> None:
    """Some directories store the tied head as well; it must then be the embedding."""
    same = shapes.get(_EMBEDDING) == shapes[_HEAD] and np.array_equal(
        tensors.read(_EMBEDDING), tensors.read(_HEAD)
    )
    if not same:
        raise WeightsError(
            f"{source}: config.json ties {_HEAD} to {_EMBEDDING}, but the file holds another "
            "one; set tie_word_embeddings to false if the head is its own."
        )
