"""From examples to arrays: one gather per batch, no Python per user.

R rows, N columns, L an example's number of inputs.
"""

from __future__ import annotations

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.sequences import SequenceSource, flat_ranges
from recsys_jax.data.splits import Examples

FIELDS = ("items", "labels", "timestamps", "query_times", "positions", "segment_ids")
_INT32_MAX = np.iinfo(np.int32).max


def fill_batch(
    source: SequenceSource,
    examples: Examples,
    max_len: int,
    rows: np.ndarray,
    columns: np.ndarray,
    segments: np.ndarray,
    shape: tuple[int, int],
    request_times: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Writes the windows of `examples` at (rows, columns) of an [R, N] batch.

    Args:
      rows, columns: int64 [M], cell of each window's first input.
      segments: int32 [M], segment id of each window within its row.
      shape: (R, N).
      request_times: int64 [M], query time of a last input whose label is unknown (target is the
        user's length); None takes the time of that input.

    Returns:
      The fields FIELDS, int32 [R, N]; times count from the window's first event.

    Raises:
      DataError: a window spans more time than int32 holds.
    """
    batch = {name: np.zeros(shape, np.int32) for name in FIELDS}
    if not len(examples):
        return batch
    starts, lengths = examples.starts(max_len), examples.lengths(max_len)
    total = source.lengths[examples.user]
    known = examples.target < total
    stops = examples.target + known  # the label event is read too, where it exists
    items, times = source.ranges(examples.user, starts, stops)
    read = stops - starts
    heads = np.cumsum(read) - read
    index = flat_ranges(heads, lengths)
    following = np.minimum(index + 1, len(items) - 1)
    last = np.cumsum(lengths) - 1
    labels, queries = items[following], times[following]
    if not known.all():
        unknown = last[~known]
        labels[unknown] = 0
        now = times[index[unknown]]
        queries[unknown] = now if request_times is None else np.asarray(request_times)[~known]
    origin = np.repeat(times[heads], lengths)
    span = queries - origin
    if len(span) and span.max() > _INT32_MAX:
        worst = int(np.argmax(span))
        user = int(np.repeat(examples.user, lengths)[worst])
        raise DataError(
            f"A window of user number {user} spans {int(span[worst])} time units, more than int32 "
            f"holds ({_INT32_MAX}). Divide the timestamps with --config.data.time_scale (1000 "
            "turns milliseconds into seconds)."
        )
    position = flat_ranges(np.zeros(len(lengths), np.int64), lengths)
    cell = np.repeat(rows * shape[1] + columns, lengths) + position
    values = (items[index], labels, times[index] - origin, span, position)
    for name, value in zip(FIELDS, values, strict=False):
        batch[name].reshape(-1)[cell] = value
    batch["segment_ids"].reshape(-1)[cell] = np.repeat(segments, lengths)
    return batch


def pack_epoch(
    lengths: np.ndarray, rows: int, row_length: int, lookahead: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First-fit packing of windows, in the given order, into batches of `rows` rows.

    A window that fits in no row of the open batch waits for the next one; the batch is closed
    when `lookahead` windows wait. Every window is placed exactly once.

    Args:
      lengths: int64 [M], each 1..row_length.

    Returns:
      (batch, row, column, segment), int64 [M] each; segments count from 1 within a row.

    Raises:
      DataError: a window longer than a row.
    """
    if len(lengths) and lengths.max() > row_length:
        raise DataError(
            f"A window of {int(lengths.max())} events does not fit a row of {row_length}; raise "
            "data.row_length or lower data.max_len."
        )
    sizes = lengths.tolist()
    placed: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)] * len(sizes)
    shortest = min(sizes, default=0)
    waiting: list[int] = []
    following, batch = 0, 0
    while waiting or following < len(sizes):
        used, count = [0] * rows, [0] * rows
        open_from = 0
        queue, waiting = waiting, []
        taken = 0
        while len(waiting) < lookahead:
            if taken < len(queue):
                which = queue[taken]
                taken += 1
            elif following < len(sizes):
                which = following
                following += 1
            else:
                break
            size = sizes[which]
            for row in range(open_from, rows):
                if used[row] + size <= row_length:
                    placed[which] = (batch, row, used[row], count[row] + 1)
                    used[row] += size
                    count[row] += 1
                    break
            else:
                waiting.append(which)
            while open_from < rows and row_length - used[open_from] < shortest:
                open_from += 1
        waiting = waiting + queue[taken:]
        batch += 1
    batches, rows_, columns, segments = np.array(placed, np.int64).reshape(-1, 4).T
    return batches, rows_, columns, segments


def packed_rows(lengths: np.ndarray, batch_size: int, row_length: int, multiple_of: int = 1) -> int:
    """Rows per packed batch that hold about `batch_size` windows on average.

    Args:
      lengths: int64 [M], inputs of each window.
      multiple_of: the result is a multiple of this (devices or processes of the data axis).
    """
    mean = float(np.mean(lengths)) if len(lengths) else 1.0
    fill = 0.98 if mean * 4 <= row_length else 0.95  # what first-fit with lookahead reaches
    rows = max(1, round(batch_size * mean / (row_length * fill)))
    return -(-rows // multiple_of) * multiple_of
