"""Stacked parameters from single tensors, one parameter at a time.

At any moment there are the finished parameters, the one being filled and one tensor of the file:
never two copies of the model. On a mesh each finished parameter leaves the host at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.decoder import Decoder
from pangu_jax.parallel.sharding import DEFAULT_RULES, Rules, shardings_for
from pangu_jax.weights.errors import WeightsError
from pangu_jax.weights.mapping import MappedTensor

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def check_dtype(dtype: str | None) -> np.dtype | None:
    """NumPy type of a name, None for None (as stored).

    Raises:
      WeightsError: another name.
    """
    if dtype is None:
        return None
    if dtype not in DTYPES:
        raise WeightsError(
            f"dtype={dtype!r} is unknown; allowed: {', '.join(DTYPES)}, or None for as stored."
        )
    return DTYPES[dtype]


def assemble(
    config: DecoderConfig,
    tensors: Sequence[MappedTensor],
    read: Callable[[MappedTensor], np.ndarray],
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
) -> dict[str, Any]:
    """The parameter tree: NumPy arrays, or sharded jax arrays where a mesh is given.

    Args:
      config: of the decoder.
      tensors: as `map_tensors` lists them.
      read: gives a tensor of the file in the file's shape.
      dtype: of all parameters; None keeps the stored type (of the widest layer).
      mesh, rules: where to put each parameter, by its logical axes.

    Raises:
      WeightsError: unknown dtype. MeshError: a parameter that the mesh cannot divide.
    """
    wanted = check_dtype(dtype)
    shardings = {} if mesh is None else _shardings(config, mesh, rules)
    tree: dict[str, Any] = {}
    for path, group in itertools.groupby(tensors, key=lambda tensor: tensor.path):
        array = _stack(list(group), read, wanted)
        if mesh is not None:
            array = _place(array, shardings[path])
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return tree


def _stack(group: list[MappedTensor], read, wanted) -> np.ndarray:
    out = None
    for index, tensor in enumerate(group):
        value = read(tensor)
        if wanted is not None:
            value = value.astype(wanted, copy=False)
        if out is None:
            layers = () if tensor.layer is None else (len(group),)
            out = np.empty((*layers, *tensor.ours), value.dtype)
        elif value.dtype != out.dtype:
            # One parameter has one type: the one that holds every layer exactly.
            out = out.astype(np.promote_types(out.dtype, value.dtype), copy=False)
            value = value.astype(out.dtype, copy=False)
        tensor.fill(out if tensor.layer is None else out[index], value)
    return out


def _place(array: np.ndarray, sharding) -> jax.Array:
    placed = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return jax.block_until_ready(placed)


def _shardings(config: DecoderConfig, mesh: Mesh, rules: Rules) -> dict[tuple[str, ...], Any]:
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]
    flat, _ = jax.tree_util.tree_flatten_with_path(shardings_for(boxed, mesh, rules))
    return {tuple(key.key for key in path): sharding for path, sharding in flat}
