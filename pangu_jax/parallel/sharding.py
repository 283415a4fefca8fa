"""Logical axis names to mesh axes, and the placement of parameters and batches.

Models name the axes of their parameters by meaning ('items', 'embed', ...) through
`flax.linen.with_logical_partitioning`. One table of rules per mesh says what each name means
there. No model code names a mesh axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pangu_jax.parallel.mesh import MeshError

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# Names without an entry are replicated, as is every axis whose mesh axis has size 1.
DEFAULT_RULES: Rules = (
    ("batch", "data"),
    ("items", "model"),
    ("vocab", "model"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("mlp", "model"),
    ("sequence", None),
    ("residual_sequence", None),  # of the residual stream; 'model' here is sequence parallelism
    ("embed", None),
    ("head_dim", None),
    ("norm", None),
    ("layers", None),
)


def unbox(tree: Any) -> Any:
    """The tree with flax metadata boxes (`LogicallyPartitioned`, ...) replaced by their values."""
    return jax.tree.map(_value, tree, is_leaf=_is_box)


def shardings_for(tree: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """NamedSharding for every array of a (boxed or plain) tree; plain leaves are replicated.

    Args:
      tree: arrays or `ShapeDtypeStruct`s, optionally in flax boxes carrying logical axis names.
      mesh: the mesh to place them on.
      rules: (logical name, mesh axis or None) pairs; the first match wins.

    Raises:
      MeshError: a dimension is not divisible by its mesh axis; names the parameter.
    """
    table: dict[str, Any] = {}
    for name, axis in rules:
        table.setdefault(name, axis)

    def place(path, leaf):
        names = _logical_names(leaf) if _is_box(leaf) else ()
        spec = _partition_spec(
            names, np.shape(_value(leaf)), table, mesh, jax.tree_util.keystr(path)
        )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree, is_leaf=_is_box)


def abstract_with_shardings(tree: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """Unboxed `ShapeDtypeStruct` tree with shardings: the target of a checkpoint restore."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(tree),
        shardings_for(tree, mesh, rules),
    )


def global_batch(host_batch: Any, mesh: Mesh, *, batch_axis: int = 0) -> Any:
    """Places this process's rows on its devices and returns the arrays of the whole batch.

    Args:
      host_batch: tree of NumPy arrays, rows on `batch_axis`. With P processes every process
        passes its own 1/P of the rows, in process order.
      mesh: mesh with an axis 'data'; rows are divided over it.
      batch_axis: 0, or 1 for batches stacked over steps.

    Raises:
      MeshError: the rows cannot be divided over the mesh.
    """
    ways = mesh.shape["data"]
    # Two processes that share one data shard (a model axis across hosts) hold the same rows.
    local_ways = len(
        {
            index[0]
            for index, device in np.ndenumerate(mesh.devices)
            if device.process_index == jax.process_index()
        }
    )

    def place(path, array):
        array = np.asarray(array)
        rows = array.shape[batch_axis] if array.ndim > batch_axis else None
        if not rows or rows % local_ways:
            raise MeshError(
                f"Batch array {jax.tree_util.keystr(path)} has "
                f"{'no rows' if not rows else f'{rows} rows on this process'}, which cannot be "
                f"divided over {local_ways} data shard(s) (train.mesh.data={ways}); make "
                f"the batch size a multiple of {ways} or lower train.mesh.data."
            )
        spec = PartitionSpec(*(None,) * batch_axis, "data")
        shape = list(array.shape)
        shape[batch_axis] = rows // local_ways * ways
        return jax.make_array_from_process_local_data(
            NamedSharding(mesh, spec), array, tuple(shape)
        )

    return jax.tree_util.tree_map_with_path(place, host_batch)


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal parts of a batch's rows this process must provide.

    Processes that share a data shard (a model axis across processes) provide the same part.

    Raises:
      MeshError: this process's devices do not hold an aligned run of data shards.
    """
    own = sorted(
        {
            index[0]
            for index, device in np.ndenumerate(mesh.devices)
            if device.process_index == jax.process_index()
        }
    )
    ways, size = mesh.shape["data"], len(own)
    if own != list(range(own[0], own[0] + size)) or own[0] % size or ways % size:
        raise MeshError(
            f"This process holds the data shards {own} of {ways}, which are not an equal part of "
            "the batch; choose train.mesh.data so that every process holds equally many in a row."
        )
    return own[0] // size, ways // size


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _is_box(leaf: Any) -> bool:
    # Structural, so that this file needs no flax: every flax box has unbox and get_partition_spec.
    return hasattr(leaf, "unbox") and hasattr(leaf, "get_partition_spec")


def _value(leaf: Any) -> Any:
    return leaf.unbox(apply_constraint=False) if _is_box(leaf) else leaf


def _logical_names(box: Any) -> tuple[str | None, ...]:
    return tuple(getattr(box, "names", ()))


def _partition_spec(names, shape, table, mesh, path) -> PartitionSpec:
    if names and len(names) != len(shape):
        raise MeshError(
            f"Parameter {path} has shape {shape} but logical axes {names}; give one "
            "name (or None) per dimension."
        )
    axes = []
    for dim, name in enumerate(names):
        axis = table.get(name) if name is not None else None
        size = (
            int(np.prod([mesh.shape[a] for a in ([axis] if isinstance(axis, str) else axis)]))
            if axis is not None
            else 1
        )
        if size > 1 and shape[dim] % size:
            raise MeshError(
                f"Parameter {path} has {shape[dim]} entries on axis {dim} ({name!r}), which "
                f"cannot be divided over mesh axis {axis!r} of size {size}; pad it to a multiple "
                f"of {size} or lower train.mesh.{axis}."
            )
        axes.append(axis if size > 1 else None)
    return PartitionSpec(*axes)
