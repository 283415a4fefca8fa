"""Full-catalogue ranking, streamed over blocks of items in bounded memory.

Letters: B users, D embedding, I items, R = I + 1 table rows, H history, k list length,
n blocks, M items of a block, G groups of a block, g items of a group.

How it works. The items are visited in blocks of M rows. One matrix product gives the scores of a
block, ``[M, B]`` (users in the minor dimension, so that every reduction over items runs over whole
vector registers). Three cheap things are taken from it before it is dropped: the items of the
users' histories are struck out, the candidates that stand ahead of the target are counted, and the
largest score of every group of g neighbouring items is kept. The k best items of a user always lie
in the k groups with the largest maxima, so after the last block only k * g items per user are
scored again and sorted. No sort ever sees a whole catalogue.

Tie rule. The target stands behind every candidate with an equal score: a scorer that gives all
items the same score gets the worst rank, not the best. "Equal" means that float32 arithmetic can
not tell the scores apart: ``s >= s_target - tol``, where
``tol = 2 max(8, sqrt(D)) 2^-24 sum_d |u_d v_d|`` is a few units in the last place (and changes
nothing between small integers). Without this margin a collapsed model would be ranked by the
rounding of its matrix products. The top-k list breaks ties by lower item id.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NOT_RANKED = np.iinfo(np.int32).max
"""Rank of a target that is no candidate (``filter_target=True`` and it lies in the history)."""

GROUP = 16  # Items per group: k * GROUP items are scored twice, I / GROUP maxima are kept.
_HISTORY_CHUNK = 1024  # History entries struck out per loop turn.
_FLOAT_MIN = float(np.finfo(np.float32).min)


class Ranking(NamedTuple):
    """Result of a full-catalogue ranking.

    ranks: int32 [B], 1 = best, 0 where the target is 0 (unknown), ``NOT_RANKED`` where filtered.
    topk_items: int32 [B, k], best first; 0 where fewer than k candidates exist.
    topk_scores: float32 [B, k]; -inf where topk_items is 0.
    """

    ranks: jax.Array
    topk_items: jax.Array
    topk_scores: jax.Array


def rank_targets_and_topk(
    user_vectors,
    item_table,
    targets,
    history,
    *,
    k: int,
    block_items: int | None = None,
    allowed_items=None,
    num_items: int | None = None,
    filter_target: bool = False,
) -> Ranking:
    """Rank every user's target among all items and list the k best items, one pass over blocks.

    Candidates of a user are the items 1..num_items that are allowed and not in the history. The
    target is always a candidate, also when it occurs in the history or is not allowed for the
    others; the module docstring states the tie rule. Scores that are NaN count as ahead of the
    target and never enter the top-k list.

    Args:
      user_vectors: float [B, D].
      item_table: float [R, D], row i is item i; row 0 is padding and never ranked.
      targets: int32 [B], 0 = unknown (rank 0).
      history: int32 [B, H] items to leave out, 0 = none; repeats are fine; H may be 0.
      k: length of the list; 0 skips the list.
      block_items: rows per block, rounded up to a multiple of 16; None picks a size that suits the
        caches (CPU) or launch costs (accelerator). Memory beside the table is about
        ``4 B (block_items + I / 16)`` bytes, and 64 MB for the last stage.
      allowed_items: bool [R], False removes an item for every user; None allows all.
      num_items: I, when the table has padding rows behind item I; default R - 1.
      filter_target: remove the target, too, when it occurs in the history (as the released FuXi
        code does): its rank is ``NOT_RANKED``.
    Returns:
      Ranking.
    Raises:
      ValueError: shapes that do not fit, k out of range.
    Source: protocol of the released HSTU / FuXi evaluation (spec section 3); algorithm our own.
    """
    num_items = _check(user_vectors, item_table, targets, history, allowed_items, k, num_items)
    if block_items is not None and block_items < 1:
        raise ValueError(f"block_items={block_items} must be at least 1 (or None for automatic).")
    return _rank_jit(
        user_vectors,
        item_table,
        targets,
        history,
        allowed_items,
        k=int(k),
        block_items=block_items,
        num_items=num_items,
        filter_target=bool(filter_target),
    )


def rank_shard(
    user_vectors,
    item_table,
    targets,
    history,
    allowed_items,
    *,
    k: int,
    block_items: int | None,
    num_items: int,
    filter_target: bool,
    axis_name: str | None = None,
) -> Ranking:
    """Body of the ranking on one shard of rows; see `rank_targets_and_topk` for the arguments.

    With ``axis_name`` the table (and allowed_items) hold the rows of this shard only and the result
    is combined over that mesh axis; ids are global throughout.
    """
    rows, dim = item_table.shape
    batch = user_vectors.shape[0]
    users_BD = user_vectors.astype(jnp.float32)
    targets = targets.astype(jnp.int32)
    history = history.astype(jnp.int32)
    first = jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name) * rows

    # The target's own score: its row may live on another shard; all others add exact zeros.
    local = targets - first
    here = (local >= 0) & (local < rows)
    target_BD = jnp.where(
        here[:, None], item_table[jnp.clip(local, 0, rows - 1)].astype(jnp.float32), 0.0
    )
    if axis_name is not None:
        target_BD = jax.lax.psum(target_BD, axis_name)
    products = users_BD * target_BD
    margin = 2.0 * max(8.0, math.sqrt(dim)) * 2.0**-24
    threshold = products.sum(1) - margin * jnp.abs(products).sum(1)
    # NaN or -inf target: every candidate that is not struck out stands ahead.
    threshold = jnp.where(threshold > _FLOAT_MIN, threshold, _FLOAT_MIN)

    in_history = (history == targets[:, None]) & (targets[:, None] > 0)
    if not filter_target:
        history = jnp.where(in_history, 0, history)
    filtered = in_history.any(1) if filter_target else jnp.zeros(batch, bool)

    counts, items, scores = _scan_blocks(
        users_BD, item_table, targets, history, allowed_items, threshold, first,
        k=k, block_items=block_items, num_items=num_items,
    )  # fmt: skip
    if axis_name is not None:
        counts = jax.lax.psum(counts, axis_name)
        if k:
            # Shard order is id order, so a stable top-k keeps "lower id first" among ties.
            items = jax.lax.all_gather(items, axis_name, axis=1, tiled=True)
            scores = jax.lax.all_gather(scores, axis_name, axis=1, tiled=True)
            scores, where = jax.lax.top_k(scores, k)
            items = jnp.take_along_axis(items, where, axis=1)
    ranks = jnp.where(filtered, NOT_RANKED, 1 + counts)
    return Ranking(jnp.where(targets > 0, ranks, 0).astype(jnp.int32), items, scores)


@functools.partial(jax.jit, static_argnames=("k", "block_items", "num_items", "filter_target"))
def _rank_jit(users, table, targets, history, allowed, *, k, block_items, num_items, filter_target):
    return rank_shard(
        users, table, targets, history, allowed,
        k=k, block_items=block_items, num_items=num_items, filter_target=filter_target,
    )  # fmt: skip


def auto_block_items(batch: int) -> int:
    """Rows per block: scores of about 1 MB (CPU, second-level cache) or 256 MB (accelerator)."""
    # Measured on two cores: blocks below 2,048 rows lose more in the product than they gain.
    size, least = (2**20, 2048) if jax.default_backend() == "cpu" else (2**28, 8192)
    return int(np.clip(size // (4 * max(batch, 1)), least, 2**17))


def _scan_blocks(
    users_BD, table, targets, history, allowed, threshold, first, *, k, block_items, num_items
):
    """Counts of candidates ahead of the target [B] and the k best items of these rows."""
    rows, dim = table.shape
    batch = users_BD.shape[0]
    size = -(-(block_items or auto_block_items(batch)) // GROUP) * GROUP
    size = min(size, rows)
    num_blocks = -(-rows // size)
    entries = _history_entries(history, first, rows, by_item=num_blocks > 1)
    users_DB = users_BD.T
    columns = jnp.arange(batch)

    def block(nominal):
        """Masked scores [M, B] of the rows nominal.. of this shard, and the count."""
        # The last block is moved back instead of padding the table; rows seen before are masked.
        start = jnp.minimum(nominal, rows - size)
        local_rows = start + jnp.arange(size, dtype=jnp.int32)
        ids = first + local_rows
        valid = (local_rows >= nominal) & (ids > 0) & (ids <= num_items)
        if allowed is not None:
            valid &= jax.lax.dynamic_slice(allowed, (start,), (size,))
        rows_MD = jax.lax.dynamic_slice(table, (start, 0), (size, dim)).astype(jnp.float32)
        scores = jnp.dot(rows_MD, users_DB, precision=jax.lax.Precision.HIGHEST)
        scores = _strike_out(scores, entries, start)
        ahead = ~(scores < threshold) & valid[:, None]
        count = _sum_items(ahead)
        # Rank = 1 + others ahead: take the target itself out if its own product was counted.
        local = targets - first - start
        inside = (local >= 0) & (local < size)
        local = jnp.clip(local, 0, size - 1)
        count -= (inside & ahead[local, columns]).astype(jnp.int32)
        if not k:
            return count, None
        scores = jnp.where(valid[:, None] & (scores == scores), scores, -jnp.inf)
        return count, scores

    if num_blocks == 1:
        counts, scores_MB = block(jnp.int32(0))
        if not k:
            return counts, *_empty_list(batch)
        scores, where = jax.lax.top_k(scores_MB.T, min(k, size))
        items = jnp.where(scores > -jnp.inf, first + where.astype(jnp.int32), 0)
        return counts, *_pad_list(items, scores, k)

    def step(counts, nominal):
        count, scores = block(nominal)
        maxima = None if scores is None else scores.reshape(-1, GROUP, batch).max(1)
        return counts + count, maxima

    nominals = jnp.arange(num_blocks, dtype=jnp.int32) * size
    counts, maxima_nGB = jax.lax.scan(step, jnp.zeros(batch, jnp.int32), nominals)
    if not k:
        return counts, *_empty_list(batch)
    items, scores = _best_of_groups(
        users_BD, table, history, allowed, maxima_nGB, first, size, k=k, num_items=num_items
    )
    return counts, items, scores


def _best_of_groups(users_BD, table, history, allowed, maxima_nGB, first, size, *, k, num_items):
    """k best items out of the k best groups of every user: items, scores [B, k]."""
    rows, dim = table.shape
    num_blocks, groups, batch = maxima_nGB.shape
    maxima = maxima_nGB.reshape(num_blocks * groups, batch).T
    best = min(k, num_blocks * groups)
    _, chosen = jax.lax.top_k(maxima, best)
    chosen = jnp.sort(chosen, axis=1)  # Item ids then ascend, which the tie rule relies on.

    def first_row(group):
        nominal = (group // groups) * size
        return nominal, jnp.minimum(nominal, rows - size) + (group % groups) * GROUP

    def one_user(args):
        user_D, chosen_k, history_H = args
        nominal, start = first_row(chosen_k)
        rows_kgD = jax.vmap(lambda s: jax.lax.dynamic_slice(table, (s, 0), (GROUP, dim)))(start)
        scores = jnp.einsum(
            "kgd,d->kg", rows_kgD.astype(jnp.float32), user_D, precision=jax.lax.Precision.HIGHEST
        )
        local = start[:, None] + jnp.arange(GROUP, dtype=jnp.int32)
        ids = first + local
        valid = (local >= nominal[:, None]) & (ids > 0) & (ids <= num_items)
        if allowed is not None:
            valid &= allowed[local]
        scores = jnp.where(valid & (scores == scores), scores, -jnp.inf)
        # Find the chosen group of each history item (H * k comparisons), then strike the item out.
        past = history_H - first
        block = past // size
        offset = past - jnp.minimum(block * size, rows - size)
        same = (block * groups + offset // GROUP)[:, None] == chosen_k[None, :]
        same &= ((history_H > 0) & (past >= 0) & (past < rows))[:, None]
        place = jnp.where(same.any(1), same.argmax(1), best)
        scores = scores.at[place, offset % GROUP].set(-jnp.inf, mode="drop").reshape(-1)
        scores, where = jax.lax.top_k(scores, min(k, best * GROUP))
        return jnp.where(scores > -jnp.inf, ids.reshape(-1)[where], 0), scores

    # A chunk of users at a time, or the gathered rows would not be bounded.
    chunk = int(np.clip(2**24 // (best * GROUP * dim), 1, batch))
    items, scores = jax.lax.map(one_user, (users_BD, chosen, history), batch_size=chunk)
    return _pad_list(items, scores, k)


def _history_entries(history, first, rows, *, by_item):
    """(local rows, users) of all history entries; entries of no row here get row `rows`."""
    batch, width = history.shape
    if not width:
        return None
    local = (history - first).reshape(-1)
    struck = (history.reshape(-1) > 0) & (local >= 0) & (local < rows)
    local = jnp.where(struck, local, rows)
    users = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), width)
    if not by_item:
        return local, users, None
    # Sorted by row, every block finds its own entries in one run.
    local, users = jax.lax.sort((local, users), num_keys=1)
    chunk = min(_HISTORY_CHUNK, local.shape[0])
    local = jnp.pad(local, (0, chunk), constant_values=rows)  # A slice may start at the end.
    users = jnp.pad(users, (0, chunk))
    return local, users, chunk


def _strike_out(scores_MB, entries, start):
    """Set the scores of history items to -inf."""
    if entries is None:
        return scores_MB
    local, users, chunk = entries
    size = scores_MB.shape[0]
    if chunk is None:
        return scores_MB.at[local, users].set(-jnp.inf, mode="drop")
    begin, end = jnp.searchsorted(local, jnp.stack([start, start + size]))

    def body(i, scores):
        at = begin + i * chunk
        rows = jax.lax.dynamic_slice(local, (at,), (chunk,)) - start
        who = jax.lax.dynamic_slice(users, (at,), (chunk,))
        # Entries of later blocks lie outside and are dropped; the slice never starts before begin.
        return scores.at[rows, who].set(-jnp.inf, mode="drop")

    return jax.lax.fori_loop(0, (end - begin + chunk - 1) // chunk, body, scores_MB)


def _sum_items(ahead_MB):
    """Number of True per user, int32 [B]."""
    size, batch = ahead_MB.shape
    if size % GROUP:
        return ahead_MB.sum(0, dtype=jnp.int32)
    # Two stages kept apart by a barrier: XLA on CPU would otherwise merge them into one slow loop.
    partial = ahead_MB.reshape(-1, GROUP, batch).sum(1, dtype=jnp.int32)
    return jax.lax.optimization_barrier(partial).sum(0)


def _empty_list(batch):
    return jnp.zeros((batch, 0), jnp.int32), jnp.zeros((batch, 0), jnp.float32)


def _pad_list(items, scores, k):
    missing = k - items.shape[1]
    if missing <= 0:
        return items, scores
    return (
        jnp.pad(items, ((0, 0), (0, missing))),
        jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf),
    )


def _check(users, table, targets, history, allowed, k, num_items):
    if getattr(users, "ndim", 0) != 2 or getattr(table, "ndim", 0) != 2:
        raise ValueError(
            "user_vectors and item_table must be matrices [B, D] and [num_items + 1, D]; got "
            f"{np.shape(users)} and {np.shape(table)}."
        )
    if users.shape[1] != table.shape[1]:
        raise ValueError(
            f"user_vectors have {users.shape[1]} dimensions but item_table has {table.shape[1]}; "
            "both come from one model (encode and item_table) and must agree."
        )
    if targets.shape != (users.shape[0],):
        raise ValueError(f"targets must have shape [{users.shape[0]}]; got {targets.shape}.")
    if history.ndim != 2 or history.shape[0] != users.shape[0]:
        raise ValueError(f"history must have shape [{users.shape[0]}, H]; got {history.shape}.")
    if num_items is None:
        num_items = table.shape[0] - 1
    if not 1 <= num_items < table.shape[0]:
        raise ValueError(
            f"num_items={num_items} does not fit an item table of {table.shape[0]} rows: row 0 is "
            "padding, so there must be between 1 and rows - 1 items."
        )
    if allowed is not None and (allowed.shape != (table.shape[0],) or allowed.dtype != bool):
        raise ValueError(
            f"allowed_items must be bool [{table.shape[0]}] (one entry per table row); got "
            f"{allowed.dtype} {allowed.shape}."
        )
    if not 0 <= k <= num_items:
        raise ValueError(
            f"k={k} must lie between 0 and the number of items ({num_items}); lower k "
            "(--config.predict.k)."
        )
    return int(num_items)
