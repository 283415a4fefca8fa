"""LoRA adapters in the directory layout of the `peft` library, which vLLM reads as well.

A directory holds adapter_config.json and adapter_model.safetensors. Tensors are called
base_model.model.<module>.lora_A.weight (r, inputs) and ....lora_B.weight (outputs, r), where the
base's own weight is <module>.weight. The layout is that of peft 0.21.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.lora import Adapter, LoraConfig, LoraError, check_adapter
from pangu_jax.models.lora.config import TARGETS
from pangu_jax.models.lora.targets import get_target, target_specs
from pangu_jax.weights.assemble import DTYPES, assemble
from pangu_jax.weights.errors import WeightsError, require
from pangu_jax.weights.hf_config import tensor_names
from pangu_jax.weights.mapping import MappedTensor
from pangu_jax.weights.safetensors_import import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_FINGERPRINT = "pangu_jax.base_fingerprint"  # in the header of the tensors' file
# Ways in which A and B may have started that leave the base as it is; others (PiSSA, OLoRA,
# CorDA, LoftQ, LoRA-GA) change it, and such an adapter is wrong beside the plain base.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Entries that change nothing about what an adapter computes, or that are read below.
_READ = (
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules",
    "base_model_name_or_path", "bias", "init_lora_weights",
)  # fmt: skip
_WITHOUT_EFFECT = (
    "auto_mapping", "revision", "inference_mode", "peft_version", "exclude_modules",
    "layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
)  # fmt: skip


def export_peft(adapter: Adapter, config: DecoderConfig, folder: str | os.PathLike) -> Path:
    """Writes an adapter, float32, so that `peft` and vLLM load it; returns the folder.

    The folder appears complete or not at all. `base_model_name_or_path` is adapter.base_name.

    Args:
      adapter: its parameters may be NumPy or jax arrays. config: of its base.
      folder: must not exist yet, or be empty.

    Raises:
      WeightsError: a folder with content, an adapter that does not fit the base, a rotary layout
        other than 'half'.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder} exists and is not an empty folder; name a new one.")
    try:
        check_adapter(adapter, config)
    except LoraError as error:
        raise WeightsError(str(error)) from error
    save_file = require("safetensors.numpy").save_file
    lora, arrays = adapter.config, {}
    params = nn.unbox(adapter.params)
    for tensor in _tensors(config, lora.rank, lora.targets):
        leaf = get_target(params, tensor.path[-2])[tensor.path[-1]]
        arrays[tensor.name] = tensor.to_theirs(np.asarray(leaf[tensor.layer], np.float32))
    metadata = {"format": "pt"}
    if adapter.base_fingerprint is not None:
        metadata[_FINGERPRINT] = adapter.base_fingerprint

    scratch = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        text = json.dumps(_config_values(adapter, config), indent=2, sort_keys=True)
        (scratch / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(arrays, scratch / TENSORS, metadata=metadata)
        # The library's files are for their owner alone, whatever the umask says.
        shutil.copymode(scratch / CONFIG, scratch / TENSORS)
        if folder.exists():
            folder.rmdir()
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


def import_peft(
    folder: str | os.PathLike,
    config: DecoderConfig,
    *,
    base_fingerprint: str | None = None,
    name: str | None = None,
) -> Adapter:
    """An adapter for a decoder of this config; parameters are NumPy arrays, float32.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors.
      config: of the base. base_fingerprint: of the base (`pangu_jax.models.lora.fingerprint`),
        compared with that of the file, which adapters written by other programs do not have.
      name: of the adapter; None for the folder's.

    Raises:
      WeightsError: files missing or truncated, another kind of adapter (DoRA, biases, extra
        modules, ranks by pattern, ...), targets that a decoder lacks, tensors missing, unknown, not
        finite or of another shape, another base.
    """
    folder = Path(folder)
    source = folder / CONFIG
    values = read_json(source)
    _check_kind(values, source)
    library = require("safetensors")
    try:
        with library.safe_open(folder / TENSORS, "numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
            known = (file.metadata() or {}).get(_FINGERPRINT)
            lora = _lora_config(values, source, shapes, config)
            tensors = _tensors(config, lora.rank, lora.targets)
            _check_tensors(shapes, tensors, folder / TENSORS)
            params = assemble(config, tensors, lambda t: _read(file, t.name), dtype="float32")
    except (library.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{folder / TENSORS} is missing, truncated or no safetensors file ({error}); fetch it "
            "again. (Adapters in pickled .bin files are not read.)"
        ) from error
    base_name = values.get("base_model_name_or_path") or None
    adapter = Adapter(name or folder.resolve().name, lora, params, known, base_name)
    try:
        check_adapter(adapter, config, base_fingerprint)
    except LoraError as error:
        raise WeightsError(f"{folder}: {error}") from error
    return adapter


def _tensors(config: DecoderConfig, rank: int, targets: Sequence[str]) -> list[MappedTensor]:
    """Every tensor of an adapter of this rank and these targets, in the order of our parameters."""
    if config.rope_layout != "half":
        raise WeightsError(
            f"rope_layout={config.rope_layout!r}: adapters are read and written for 'half' only."
        )
    tensors = []
    for name in targets:
        spec = target_specs(config)[name]
        width, ins, outs = spec.fan_in, spec.inputs, spec.outputs
        a = ((rank, width), (rank, *ins), (*range(1, len(ins) + 1), 0), (*ins, rank))
        out_order = (len(outs), *range(len(outs)))
        b = ((int(np.prod(outs)), rank), (*outs, rank), out_order, (rank, *outs))
        for leaf, (shape, split, order, ours) in (("a", a), ("b", b)):
            for layer in range(config.num_layers):
                full = f"{_module(config, name, layer)}.lora_{leaf.upper()}.weight"
                path = (*spec.path, leaf)
                tensors.append(MappedTensor(path, layer, full, shape, split, order, ours))
    return tensors


def _module(config: DecoderConfig, name: str, layer: int) -> str:
    path = "/".join((*target_specs(config)[name].path, "kernel"))
    return "base_model.model." + tensor_names(config)[path].format(layer).removesuffix(".weight")


def _leaf_name(config: DecoderConfig, name: str) -> str:
    return _module(config, name, 0).rpartition(".")[2]


def _config_values(adapter: Adapter, config: DecoderConfig) -> dict[str, Any]:
    lora = adapter.config
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name,
        "revision": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": [_leaf_name(config, name) for name in lora.targets],
        "exclude_modules": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
    }


def _check_kind(values: Mapping[str, Any], source: Path) -> None:
    """Refuses everything by which the adapter would compute something else than LoRA."""

    def refuse(key, allowed):
        raise WeightsError(
            f"{source}: {key}={values.get(key)!r} is not supported; {allowed}. Convert the adapter "
            "to plain LoRA, or merge it into its base with the program that made it."
        )

    if values.get("peft_type") != "LORA":
        refuse("peft_type", "'LORA' is read")
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        refuse("task_type", "'CAUSAL_LM' is read")
    if values.get("bias", "none") != "none":
        refuse("bias", "'none' is read: adapters here have no biases")
    start = values.get("init_lora_weights", True)
    if start not in _STARTS:
        refuse("init_lora_weights", "starts that change the base's own weights are not undone here")
    for key, value in values.items():
        # What peft will know one day is refused too, unless it is switched off.
        if key not in _READ + _WITHOUT_EFFECT and value not in (None, False, 0, "", [], {}):
            refuse(key, "it must be absent or off")


def _lora_config(values, source: Path, shapes, config: DecoderConfig) -> LoraConfig:
    for key in ("r", "lora_alpha"):
        if isinstance(values.get(key), bool) or not isinstance(values.get(key), int | float):
            raise WeightsError(f"{source}: {key}={values.get(key)!r}; a number is needed.")
    dropout = values.get("lora_dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise WeightsError(f"{source}: lora_dropout={dropout!r}; a number is needed.")
    try:
        return LoraConfig(
            rank=values["r"],
            alpha=float(values["lora_alpha"]),
            targets=_targets(values, source, shapes, config),
            dropout=float(dropout),
            rslora=bool(values.get("use_rslora", False)),
        )
    except LoraError as error:
        raise WeightsError(f"{source}: {error}") from error


def _targets(values, source: Path, shapes, config: DecoderConfig) -> tuple[str, ...]:
    """By the tensors; where the configuration lists modules, the list must say the same.

    A pattern in place of the list is not matched: the tensors say what it has matched.
    """
    leaves = {_leaf_name(config, name): name for name in TARGETS}
    stored = {key.partition(".lora_")[0].rpartition(".")[2] for key in shapes}
    found = tuple(name for leaf, name in leaves.items() if leaf in stored)
    listed = values.get("target_modules")
    if isinstance(listed, list) and all(isinstance(module, str) for module in listed):
        modules = {module.rpartition(".")[2] for module in listed}
        unknown = sorted(modules - leaves.keys())
        if unknown:
            raise WeightsError(
                f"{source}: target_modules names {unknown[0]!r}; adapters here may change "
                f"{', '.join(leaves)}."
            )
        missing = sorted(modules - {_leaf_name(config, name) for name in found})
        if missing:
            raise WeightsError(
                f"{source}: target_modules names {missing[0]!r}, but {source.with_name(TENSORS)} "
                "holds no tensor of it: the file is incomplete."
            )
        return tuple(leaves[module] for module in modules)
    if not isinstance(listed, str):
        raise WeightsError(
            f"{source}: target_modules={listed!r}; a list of module names or a pattern is needed."
        )
    return found


def _check_tensors(shapes, tensors: Sequence[MappedTensor], source: Path) -> None:
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    for name, shape in wanted.items():
        if name not in shapes:
            raise WeightsError(
                f"{source} lacks {name}: the file is incomplete, or the adapter belongs to a base "
                "with fewer layers."
            )
        if shapes[name] != shape:
            raise WeightsError(
                f"{source}: {name} has shape {list(shapes[name])}; {list(shape)} is needed: the "
                "adapter belongs to another base, or its rank is not the one in its configuration."
            )
    extra = sorted(shapes.keys() - wanted.keys())
    if extra:
        raise WeightsError(
            f"{source} holds {extra[0]}, for which this base and the adapter's configuration have "
            "no place: it belongs to another base, or it is more than plain LoRA."
        )


def _read(file, name: str) -> np.ndarray:
    array = file.get_tensor(name)
    if array.dtype not in DTYPES.values():
        raise WeightsError(
            f"Tensor {name} is stored as {array.dtype}; read are {', '.join(DTYPES)}."
        )
    if not np.isfinite(array.astype(np.float32)).all():
        # Beside other adapters it would also spoil the rows that do not ask for it: 0 * NaN.
        raise WeightsError(f"Tensor {name} holds numbers that are not finite; train it again.")
    return array
