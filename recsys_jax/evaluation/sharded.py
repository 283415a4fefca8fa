"""Full-catalogue ranking with users over one mesh axis and table rows over another."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from recsys_jax.evaluation.ranking import Ranking, _check, rank_shard


def pad_rows(item_table, multiple: int):
    """Append zero rows to [R, D] (or [R]) until R divides by `multiple`; pass num_items along."""
    missing = -item_table.shape[0] % multiple
    widths = [(0, missing)] + [(0, 0)] * (item_table.ndim - 1)
    xp = np if isinstance(item_table, np.ndarray) else jnp
    return xp.pad(item_table, widths) if missing else item_table


def rank_targets_and_topk_sharded(
    user_vectors,
    item_table,
    targets,
    history,
    *,
    mesh: jax.sharding.Mesh,
    k: int,
    block_items: int | None = None,
    allowed_items=None,
    num_items: int | None = None,
    filter_target: bool = False,
    data_axis: str | None = "data",
    model_axis: str | None = "model",
) -> Ranking:
    """`rank_targets_and_topk` over a mesh: local counts are summed, local lists merged.

    Shapes are global: user_vectors [B, D], targets [B] and history [B, H] are split over
    `data_axis`, item_table [R, D] and allowed_items [R] over `model_axis`; an axis name of None
    means not split. The result (split over `data_axis`) equals the single-device one. Traffic
    over `model_axis` is O(B (D + k)) numbers, independent of the number of items.

    Args: as `rank_targets_and_topk`; block_items counts rows within a shard.
    Raises:
      ValueError: B or R does not divide by its mesh axis (see `pad_rows`), unknown axis name.
    """
    num_items = _check(user_vectors, item_table, targets, history, allowed_items, k, num_items)
    for axis in (data_axis, model_axis):
        if axis is not None and axis not in mesh.shape:
            raise ValueError(f"The mesh has no axis {axis!r}; its axes are {list(mesh.shape)}.")
    data = mesh.shape[data_axis] if data_axis else 1
    model = mesh.shape[model_axis] if model_axis else 1
    if user_vectors.shape[0] % data:
        raise ValueError(
            f"{user_vectors.shape[0]} users do not divide by the {data} devices of mesh axis "
            f"{data_axis!r}; choose an evaluation batch size that is a multiple of {data}."
        )
    if item_table.shape[0] % model:
        raise ValueError(
            f"{item_table.shape[0]} item-table rows do not divide by the {model} devices of mesh "
            f"axis {model_axis!r}; use pad_rows(item_table, {model}) and pass num_items."
        )
    if allowed_items is None:
        allowed_items = jnp.ones(item_table.shape[0], bool)
    run = _sharded_fn(
        mesh, int(k), block_items, num_items, bool(filter_target), data_axis, model_axis
    )
    return run(user_vectors, item_table, targets, history, allowed_items)


@functools.lru_cache(maxsize=64)
def _sharded_fn(mesh, k, block_items, num_items, filter_target, data_axis, model_axis):
    body = functools.partial(
        rank_shard,
        k=k,
        block_items=block_items,
        num_items=num_items,
        filter_target=filter_target,
        axis_name=model_axis,
    )
    rows, users = P(model_axis), P(data_axis)
    # check_vma is off: the loop carries start unvarying, and psum / all_gather + top_k make the
    # result equal on every device of the model axis by construction.
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(users, rows, users, users, rows), out_specs=users,
        check_vma=False,
    )  # fmt: skip
    return jax.jit(mapped)
