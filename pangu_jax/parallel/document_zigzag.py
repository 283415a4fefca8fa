"""Context parallelism by documents: which rank works on which tokens of a packed row.

Every document of a row is cut into 2 C equal chunks, and rank r takes chunks r and 2 C - 1 - r of
every document. Under a causal mask that is reset at documents all ranks then have the same number
of tokens and of (query, key) pairs; so has every step of a ring, for every pair of ranks.
Source: Pangu Ultra (arXiv 2504.07866), section 4.3 "sub-sequence partitioning" and figure 5.

Documents are padded to a multiple of 2 C, and the rest of a row is divided evenly. Tokens carry
their segment ids and positions, by which alone attention may judge who sees whom; labels were
shifted before. Losses and gradients are sums over tokens, which order does not change.

Letters: T tokens of a row, C context ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pangu_jax.parallel.mesh import MeshError

NO_LABEL = -1  # as in pangu_jax.data.text
FIELDS = ("tokens", "labels", "segment_ids", "positions")


class ZigzagError(MeshError):
    """A row that cannot be divided over the context ranks; the text says what to change."""


def zigzag_source(segment_ids: np.ndarray, context: int) -> np.ndarray:
    """For every place of a divided row, the place it comes from in the packed row.

    Args:
      segment_ids: int [..., T], 0 = padding; a document is a run of one id.
      context: C.

    Returns:
      int64 [..., T]. Rank r owns places [r T / C, (r + 1) T / C). Padding is a number below 0:
      -1 - p where p is the position it gets, which continues that of its document (p = 0 in the
      rest of a row). Within a rank, documents keep their order and positions ascend.

    Raises:
      ZigzagError: T is no multiple of 2 C, or the documents, padded, are longer than the row.
    """
    segment_ids = np.asarray(segment_ids)
    if context < 1:
        raise ZigzagError(f"context={context} must be at least 1.")
    length = segment_ids.shape[-1]
    if length % (2 * context):
        raise ZigzagError(
            f"Rows of {length} tokens cannot be divided over context={context}: seq_len must be a "
            f"multiple of {2 * context}."
        )
    rows = segment_ids.reshape(-1, length)
    return np.stack([_source_of_row(row, context) for row in rows]).reshape(segment_ids.shape)


def _source_of_row(segment_ids: np.ndarray, context: int) -> np.ndarray:
    chunks, length = 2 * context, len(segment_ids)
    starts, stops = documents(segment_ids)
    sizes = stops - starts
    padded = -(-sizes // chunks) * chunks
    total = int(padded.sum())
    if total > length:
        raise ZigzagError(
            f"A row of {length} tokens holds {len(sizes)} documents that take {total} when each is "
            f"padded to a multiple of {chunks} (2 x context {context}); pack with a "
            f"document_multiple of {chunks}, so that every document begins at a multiple of it."
        )
    # One run of padding at the end, divided like a document: as much for every rank.
    padded = np.append(padded, length - total)
    begins = np.cumsum(padded) - padded  # in the row with padded documents
    place = np.arange(length)
    owner = np.searchsorted(begins, place, side="right") - 1
    within = place - begins[owner]
    first = np.append(starts, 0)[owner]
    real = within < np.append(sizes, 0)[owner]
    tail = owner == len(sizes)
    source = np.where(real, first + within, np.where(tail, -1, -1 - within))
    # Documents of no length (an empty rest) own no place, so the division below is safe.
    chunk = within // np.maximum(padded[owner] // chunks, 1)
    rank = np.minimum(chunk, chunks - 1 - chunk)
    return source[np.argsort(rank, kind="stable")]


def documents(segment_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of the runs of one id above 0 in a row, int64 [number of documents]."""
    ids = np.asarray(segment_ids)
    borders = np.flatnonzero(np.diff(ids)) + 1
    starts = np.concatenate([[0], borders])
    stops = np.concatenate([borders, [len(ids)]])
    kept = ids[starts] > 0
    return starts[kept], stops[kept]


def zigzag(batch: Mapping[str, np.ndarray], context: int) -> dict[str, np.ndarray]:
    """Rows in the order of the context ranks.

    Args:
      batch: 'segment_ids' and any other arrays [..., T] of packed rows (FIELDS). Arrays of
        another shape, such as 'domains', pass through unchanged.
      context: C. For 1 the rows stay as they are.

    Returns:
      Arrays of the same shapes and types; equal parts of the last axis are the shares of the
      ranks. Padding has token 0, label -1, segment 0 and a position that continues its
      document's; any other array has 0 there.

    Raises:
      ZigzagError: as of `zigzag_source`; an array among FIELDS with a shape of its own.
    """
    if context == 1:
        return dict(batch)
    segment_ids = np.asarray(batch["segment_ids"])
    source = zigzag_source(segment_ids, context)
    divided = {}
    for name, values in batch.items():
        values = np.asarray(values)
        if values.shape == segment_ids.shape:
            fill = np.int64(NO_LABEL if name == "labels" else 0)
            divided[name] = permute(values, source, fill)
            if name == "positions":
                padding = (-1 - source).astype(values.dtype)
                divided[name] = np.where(source < 0, padding, divided[name])
        elif name in FIELDS:
            raise ZigzagError(
                f"{name!r} has shape {values.shape}, but 'segment_ids' has {segment_ids.shape}."
            )
        else:
            divided[name] = values
    return divided


def permute(values: np.ndarray, source: np.ndarray, fill: float = 0) -> np.ndarray:
    """values [..., T] of packed rows in the order of `source`; padding gets `fill`."""
    taken = np.take_along_axis(values, np.maximum(source, 0), axis=-1)
    return np.where(source < 0, np.asarray(fill, values.dtype), taken)


def unpermute(values: np.ndarray, source: np.ndarray, fill: float = 0) -> np.ndarray:
    """The inverse of `permute` where documents are; `fill` where the packed row had padding."""
    rows, sources = values.reshape(-1, values.shape[-1]), source.reshape(-1, source.shape[-1])
    out = np.full_like(rows, fill)
    for row, where, of in zip(out, sources, rows, strict=True):
        row[where[where >= 0]] = of[where >= 0]
    return out.reshape(values.shape)


def token_pairs(segment_ids: np.ndarray, positions: np.ndarray, context: int) -> np.ndarray:
    """Attention work between ranks, for a row that is divided into C equal parts as it stands.

    Args:
      segment_ids, positions: int [T]; a query sees the keys of its segment whose position is not
        above its own.
      context: C.

    Returns:
      int64 [C, C]: pairs of queries on the first rank with keys on the second. Its sums over
      keys are the work of the ranks; step i of a ring does the i-th cyclic diagonal.
    """
    segment_ids, positions = np.asarray(segment_ids), np.asarray(positions)
    rank = np.arange(len(segment_ids)) // (len(segment_ids) // context)
    order = np.lexsort((positions, segment_ids))
    order = order[segment_ids[order] > 0]
    rank, segments = rank[order], segment_ids[order]
    pairs = np.zeros((context, context), np.int64)
    if not len(order):
        return pairs
    new = np.concatenate([[True], segments[1:] != segments[:-1]])
    starts = np.flatnonzero(new)[np.cumsum(new) - 1]  # of every token's segment
    for key in range(context):
        held = np.concatenate([[0], np.cumsum(rank == key)])
        seen = held[1:] - held[starts]
        pairs[:, key] = np.bincount(rank, weights=seen, minlength=context).astype(np.int64)
    return pairs


class Split(NamedTuple):
    """Mean over rows of what one way of dividing them does.

    imbalance: work of the busiest rank over the mean of the ranks.
    ring_imbalance: the same for a ring whose ranks wait for one another after every step.
    padding: share of the row that is padding.
    """

    imbalance: float
    ring_imbalance: float
    padding: float


def compare_splits(
    *,
    context: int = 8,
    seq_len: int = 131_072,
    mean_length: float = 4096.0,
    sigma: float = 1.2,
    rows: int = 16,
    seed: int = 0,
) -> dict[str, Split]:
    """Balance of three ways to divide rows of documents of log-normal length over C ranks.

    'contiguous': rank r takes the r-th part of the row. 'sequence_zigzag': chunks r and
    2 C - 1 - r of the whole row (Megatron's order without regard to documents).
    'document_zigzag': those of every document.

    Args:
      mean_length, sigma: mean of the lengths, and standard deviation of their logarithm (an
        assumption about documents; 1.2 is ours).
        Documents follow one another until the row is full; what goes beyond is cut off.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[Split]] = {}
    for _ in range(rows):
        sizes = _log_normal_row(rng, seq_len, mean_length, sigma, 2 * context)
        dense = _row_of(sizes, seq_len, multiple=1)
        spaced = _row_of(sizes, seq_len, multiple=2 * context)
        place = np.arange(seq_len) // (seq_len // (2 * context))
        whole = np.argsort(np.minimum(place, 2 * context - 1 - place), kind="stable")
        for name, row in (
            ("contiguous", dense),
            ("sequence_zigzag", {key: value[whole] for key, value in dense.items()}),
            ("document_zigzag", zigzag(spaced, context)),
        ):
            pairs = token_pairs(row["segment_ids"], row["positions"], context)
            ranks = np.arange(context)
            steps = [pairs[ranks, (ranks - step) % context].max() for step in ranks]
            mean = pairs.sum() / context
            found.setdefault(name, []).append(
                Split(
                    imbalance=pairs.sum(axis=1).max() / mean,
                    ring_imbalance=sum(steps) / mean,
                    padding=float((row["segment_ids"] == 0).mean()),
                )
            )
    return {
        name: Split(*(float(x) for x in np.mean(splits, axis=0))) for name, splits in found.items()
    }


def _log_normal_row(rng, seq_len: int, mean: float, sigma: float, multiple: int) -> list[int]:
    """Lengths that fill a row when each is padded to the multiple; the last one is cut."""
    sizes, room = [], seq_len
    while room > 0:
        size = max(1, round(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma)))
        sizes.append(min(size, room))
        room -= -(-sizes[-1] // multiple) * multiple
    return sizes


def _row_of(sizes: list[int], seq_len: int, *, multiple: int) -> dict[str, np.ndarray]:
    """Segment ids and positions of documents that begin at multiples."""
    row = {name: np.zeros(seq_len, np.int32) for name in ("segment_ids", "positions")}
    at = 0
    for segment, size in enumerate(sizes, 1):
        row["segment_ids"][at : at + size] = segment
        row["positions"][at : at + size] = np.arange(size)
        at += -(-size // multiple) * multiple
    return row
