"""Results of several processes: which rows a process answers for, and gathering at the end."""

from __future__ import annotations

import json

import jax
import numpy as np


def own_rows(arrays: list[jax.Array], local_rows: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The rows of global arrays that this process answers for.

    Args:
      arrays: global arrays [B, ...], all split alike along the first dimension, where this
        process contributed `local_rows` rows in the order of its devices' row ranges.
      local_rows: number of rows this process passed in.
    Returns:
      (own, values): bool [local_rows], True where no process of lower number holds the same row
      (rows are repeated when the data axis does not split the processes), and the host values of
      those rows.
    """
    first = arrays[0]
    size = first.shape[0]
    owner: dict[tuple[int, int], int] = {}
    mine = set()
    for device, index in first.sharding.devices_indices_map(first.shape).items():
        begin, end, _ = index[0].indices(size)
        owner[begin, end] = min(owner.get((begin, end), device.process_index), device.process_index)
        if device.process_index == jax.process_index():
            mine.add((begin, end))
    ranges = sorted(mine)
    own = np.concatenate([
        np.full(end - begin, owner[begin, end] == jax.process_index()) for begin, end in ranges
    ])  # fmt: skip
    if len(own) != local_rows:
        raise ValueError(
            f"This process passed {local_rows} rows per batch but the mesh places {len(own)} rows "
            "here; pass the rows of this process's devices along the data axis."
        )
    values = []
    for array in arrays:
        shards = {s.index[0].indices(size)[0]: s.data for s in array.addressable_shards}
        rows = [np.asarray(shards[begin]) for begin, _ in ranges]
        values.append(np.concatenate(rows)[own])
    return own, values


def gather(arrays: dict[str, np.ndarray], counts: np.ndarray | None):
    """Concatenate per-user arrays over all processes and add up the counts; same on every process.

    A no-op in a single process. Processes may hold different numbers of users, also none.
    """
    if jax.process_count() == 1:
        return arrays, counts
    from jax.experimental import multihost_utils

    def exchange(value: np.ndarray) -> list[np.ndarray]:
        # As bytes: JAX would cut 64-bit numbers to 32 bits.
        data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        sizes = multihost_utils.process_allgather(np.array([data.size], np.int32)).reshape(-1)
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: data.size] = data
        parts = multihost_utils.process_allgather(padded)
        return [part[:size] for part, size in zip(parts, sizes, strict=True)]

    # A process without users does not know the fields: agree on them first.
    schema = [(name, a.dtype.str, a.shape[1:]) for name, a in sorted(arrays.items())]
    texts = exchange(np.frombuffer(json.dumps(schema).encode(), np.uint8))
    schema = json.loads(max((bytes(text).decode() for text in texts), key=len))
    if not schema:
        return arrays, counts
    out = {}
    for name, dtype, shape in schema:
        mine = arrays.get(name, np.zeros((0, *shape), np.dtype(dtype)))
        parts = exchange(mine)
        out[name] = np.concatenate(
            [np.frombuffer(p.tobytes(), np.dtype(dtype)).reshape(-1, *shape) for p in parts]
        )
    none = np.zeros(0, np.int64)
    parts = exchange(none if counts is None else counts)
    totals = [np.frombuffer(p.tobytes(), np.int64) for p in parts if p.size]
    return out, np.sum(totals, axis=0)
