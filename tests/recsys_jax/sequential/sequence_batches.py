"""Random batches in the shape that `recsys_jax.data.batches` makes."""

from __future__ import annotations

import numpy as np


def histories(lengths, num_items, seed=0):
    """One (items, times) pair per length; each holds length + 1 events (the last is a label)."""
    rng = np.random.default_rng(seed)
    out = []
    for length in lengths:
        items = rng.integers(1, num_items + 1, length + 1)
        gaps = rng.integers(0, 100_000, length + 1) * (rng.random(length + 1) < 0.7)
        out.append((items.astype(np.int32), np.cumsum(gaps).astype(np.int32)))
    return out


def empty(rows, columns):
    names = ("items", "labels", "timestamps", "query_times", "positions", "segment_ids")
    return {name: np.zeros((rows, columns), np.int32) for name in names}


def place(batch, row, column, segment, items, times):
    n = len(items) - 1
    where = (row, slice(column, column + n))
    batch["items"][where], batch["labels"][where] = items[:-1], items[1:]
    batch["timestamps"][where], batch["query_times"][where] = times[:-1], times[1:]
    batch["positions"][where], batch["segment_ids"][where] = np.arange(n), segment


def padded(events, columns):
    batch = empty(len(events), columns)
    for row, (items, times) in enumerate(events):
        place(batch, row, 0, 1, items, times)
    return batch


def packed(events, columns):
    """Next-fit packing in the given order; returns the batch and (row, start) of each history."""
    spots, row, column, segment = [], 0, 0, 0
    for items, _ in events:
        n = len(items) - 1
        if column + n > columns:
            row, column, segment = row + 1, 0, 0
        segment += 1
        spots.append((row, column, segment))
        column += n
    batch = empty(row + 1, columns)
    for (r, c, s), (items, times) in zip(spots, events, strict=True):
        place(batch, r, c, s, items, times)
    return batch, [(r, c) for r, c, _ in spots]
