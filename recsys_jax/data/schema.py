"""The one form every interaction log takes, whatever file it came from.

E events, U users, I items. Dense ids: users 0..U-1, items 1..I, item 0 is padding.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recsys_jax.data.errors import DataError, DataWarning

Rows = int | Sequence[int]  # number of the first row in the file, or one number per value


@dataclasses.dataclass(frozen=True)
class InteractionLog:
    """Interactions in file order, with dense ids and what is known of users and items.

    Attributes:
      user: int32 [E], dense user of each event.
      item: int32 [E], dense item of each event, 1..I.
      timestamp: int64 [E], non-negative; seconds unless the source has another unit.
      user_ids: [U] original user ids (int64 or object array of str).
      item_ids: [I + 1] original item ids; entry 0 stands for padding (-1 or '').
      rating: float32 [E] or None.
      behaviour: object array of str [E] or None (e.g. 'view', 'buy').
      features: name -> [E] numeric array, one value per event.
      item_titles: object array of str [I + 1] or None; entry 0 is ''.
      item_features, user_features: name -> [I + 1] or [U] array.
      has_timestamps: False when the source gave only an order; time is then the event's rank.
      name, licence, citation: shown wherever a run uses the data.
      notes: what was left out while reading, one sentence each.
    """

    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    rating: np.ndarray | None = None
    behaviour: np.ndarray | None = None
    features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    item_titles: np.ndarray | None = None
    item_features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    user_features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    has_timestamps: bool = True
    name: str = "data"
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()

    @property
    def num_events(self) -> int:
        return len(self.user)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Catalogue size I, items nobody ever touched included."""
        return len(self.item_ids) - 1


def build_log(
    *,
    users: np.ndarray,
    items: np.ndarray,
    timestamps: np.ndarray | None,
    source: str,
    rating: np.ndarray | None = None,
    behaviour: np.ndarray | None = None,
    features: Mapping[str, np.ndarray] | None = None,
    catalogue: np.ndarray | None = None,
    item_titles: Mapping[Any, str] | None = None,
    item_features: Mapping[str, Mapping[Any, Any]] | None = None,
    user_features: Mapping[str, Mapping[Any, Any]] | None = None,
    time_scale: float = 1.0,
    min_user_events: int = 0,
    min_item_events: int = 0,
    min_rating: float | None = None,
    first_row: int = 1,
    name: str = "data",
    licence: str = "",
    citation: str = "",
) -> InteractionLog:
    """Checks raw columns, filters them and gives out dense ids.

    Dense ids follow the sorted original ids (numeric order when all are whole numbers), so they
    do not depend on the order of the file. Filtering: first min_rating, then users and items with
    too few events are removed in turn until none is left (k-core). Users with one event can
    neither be trained on nor evaluated and are always dropped, with a counted warning.

    Args:
      users, items: [E] original ids, integers or strings.
      timestamps: [E] numbers, or None when only the order of rows is known.
      source: file name for messages.
      catalogue: original ids of all items, also untouched ones; None takes those of the log.
      item_titles: original item id -> title.
      item_features, user_features: feature name -> (original id -> value).
      time_scale: timestamps are divided by this and rounded down (1000 for milliseconds).
      min_user_events, min_item_events: thresholds of the k-core, 0 for none.
      min_rating: events below are dropped.
      first_row: number of the first data row in the file, for messages.

    Raises:
      DataError: empty input, ids missing, bad or negative or NaN time, NaN in rating or feature,
        nobody left after filtering.
    """
    if len(users) == 0:
        raise DataError(f"{source} holds no interactions: the file is empty or has only a header.")
    users = check_ids(users, "user", source, first_row)
    items = check_ids(items, "item", source, first_row)
    has_timestamps = timestamps is not None
    if timestamps is None:
        time = np.arange(len(users), dtype=np.int64)
    else:
        time = check_time(timestamps, source, first_row, time_scale)
    features = dict(features or {})
    if rating is not None:
        rating = check_numbers(rating, "rating", source, first_row).astype(np.float32)
    for key in features:
        features[key] = check_numbers(features[key], key, source, first_row)

    notes: list[str] = []
    keep = np.ones(len(users), bool)
    if min_rating is not None:
        if rating is None:
            raise DataError(
                f"data.min_rating={min_rating} needs a rating column and {source} has none; name "
                "it with --config.data.columns.rating or set min_rating to None."
            )
        keep &= rating >= min_rating
        notes.append(f"{int((~keep).sum())} of {len(keep)} events rated below {min_rating:g}.")
    user_codes, user_ids = _encode(users)
    item_codes, item_ids = _encode(items)
    keep, dropped = _core(
        user_codes, item_codes, keep, (len(user_ids), len(item_ids)),
        (min_user_events, min_item_events),
    )  # fmt: skip
    notes += dropped
    if not keep.any():
        raise DataError(
            f"Nobody is left of the {len(user_ids)} users of {source}: a user needs at least "
            f"{max(2, min_user_events)} events (data.min_user_events={min_user_events}, "
            f"data.min_item_events={min_item_events}, data.min_rating={min_rating})."
        )
    if dropped:
        warnings.warn(f"{source}: {' '.join(dropped)}", DataWarning, stacklevel=2)

    user_codes, user_ids = _compress(user_codes[keep], user_ids)
    item_codes, item_ids = _compress(item_codes[keep], item_ids)
    if catalogue is not None and min_item_events == 0:
        item_codes, item_ids = _extend(item_codes, item_ids, catalogue)

    def per_event(column):
        return None if column is None else np.asarray(column)[keep]

    def per_id(table: Mapping[Any, Any], ids: np.ndarray, padded: bool) -> np.ndarray:
        known = [table.get(key) for key in ids.tolist()]
        text = any(isinstance(value, str) for value in known)
        blank = "" if text else (0 if all(isinstance(v, int) for v in known) else np.nan)
        values = [blank if value is None else value for value in known]
        return np.array([blank] * padded + values, dtype=object if text else None)

    padding = np.array([-1] if item_ids.dtype.kind == "i" else [""], dtype=item_ids.dtype)
    return InteractionLog(
        user=user_codes.astype(np.int32),
        item=(item_codes + 1).astype(np.int32),
        timestamp=time[keep],
        user_ids=user_ids,
        item_ids=np.concatenate([padding, item_ids]),
        rating=per_event(rating),
        behaviour=per_event(behaviour),
        features={key: per_event(value) for key, value in features.items()},
        item_titles=None if item_titles is None else per_id(item_titles, item_ids, True),
        item_features={k: per_id(v, item_ids, True) for k, v in (item_features or {}).items()},
        user_features={k: per_id(v, user_ids, False) for k, v in (user_features or {}).items()},
        has_timestamps=has_timestamps,
        name=name,
        licence=licence,
        citation=citation,
        notes=tuple(notes),
    )


def _row(rows: Rows, index: int) -> int:
    return rows + index if isinstance(rows, int) else int(rows[index])


def check_ids(column: Any, what: str, source: str, rows: Rows) -> np.ndarray:
    """Ids as int64 or object array of str; refuses missing and fractional ones."""
    column = np.asarray(column)
    if column.dtype.kind in "iu":
        return column.astype(np.int64)
    if column.dtype.kind == "f":
        bad = ~np.isfinite(column) | (column != np.floor(column))
    else:
        column = column.astype(object)
        bad = np.array([v is None or v == "" or v != v for v in column.tolist()], bool)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{source} row {_row(rows, row)}: {what} id {column[row]!r} is missing or not an id "
            f"({int(bad.sum())} such rows)."
        )
    if column.dtype.kind == "f":
        return column.astype(np.int64)
    return np.array([str(v) for v in column.tolist()], dtype=object)


def check_numbers(column: Any, what: str, source: str, rows: Rows) -> np.ndarray:
    """A numeric column without NaN or infinity."""
    column = np.asarray(column)
    if column.dtype.kind not in "iufb":
        for row, value in enumerate(column.tolist()):
            try:
                float(value)
            except (TypeError, ValueError):
                dates = " Dates are read from Parquet columns of a date type."
                raise DataError(
                    f"{source} row {_row(rows, row)}: {what} {value!r} is not a number."
                    f"{dates if what == 'timestamp' else ''}"
                ) from None
        column = column.astype(np.float64)
    if column.dtype.kind == "f":
        bad = ~np.isfinite(column)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{source} row {_row(rows, row)}: {what} is {column[row]} "
                f"({int(bad.sum())} such rows). Fill or drop these rows, or leave the column out."
            )
    return column


def check_time(column: Any, source: str, rows: Rows, scale: float) -> np.ndarray:
    """Timestamps as int64 >= 0 after division by `scale`."""
    if not scale > 0:
        raise DataError(f"data.time_scale must be positive, got {scale}.")
    column = check_numbers(column, "timestamp", source, rows)
    bad = column < 0
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{source} row {_row(rows, row)}: timestamp {column[row]} is negative "
            f"({int(bad.sum())} such rows). Times must be numbers >= 0, seconds as a rule."
        )
    whole = column.dtype.kind in "iu" and float(scale).is_integer()
    if column.dtype.kind == "f" and column.max(initial=0) >= 2**63 * min(scale, 1.0):
        raise DataError(
            f"{source}: timestamp {column.max()} does not fit 64 bits; set data.time_scale."
        )
    # Integers stay integers: nanosecond stamps would lose their last digits as floats.
    return column.astype(np.int64) // int(scale) if whole else np.floor(column / scale).astype("i8")


def _encode(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 [E] and the sorted unique ids they stand for."""
    ids, codes = np.unique(column, return_inverse=True)
    return codes, ids


def _compress(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and ids after the ids that no code uses are removed."""
    used = np.zeros(len(ids), bool)
    used[codes] = True
    return (np.cumsum(used) - 1)[codes], ids[used]


def _extend(
    codes: np.ndarray, ids: np.ndarray, catalogue: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and ids after the ids of a catalogue are added in sorted order."""
    catalogue = np.asarray(catalogue)
    if catalogue.dtype.kind not in "iu" or ids.dtype.kind not in "iu":
        catalogue, ids = catalogue.astype(object), ids.astype(object)
        catalogue = np.array([str(v) for v in catalogue.tolist()], dtype=object)
        ids = np.array([str(v) for v in ids.tolist()], dtype=object)
    merged, inverse = np.unique(np.concatenate([ids, catalogue]), return_inverse=True)
    return inverse[: len(ids)][codes], merged


def _core(
    users: np.ndarray,
    items: np.ndarray,
    keep: np.ndarray,
    sizes: tuple[int, int],
    minima: tuple[int, int],
) -> tuple[np.ndarray, list[str]]:
    """Mask of the k-core of the kept events and sentences that count what fell out."""
    keep = keep.copy()
    single, few_users, few_items = 0, 0, 0
    while True:
        user_counts = np.bincount(users[keep], minlength=sizes[0])
        item_counts = np.bincount(items[keep], minlength=sizes[1])
        lone = user_counts == 1
        weak_users = (user_counts > 1) & (user_counts < minima[0])
        weak_items = (item_counts > 0) & (item_counts < minima[1])
        if not (lone.any() or weak_users.any() or weak_items.any()):
            break
        single += int(lone.sum())
        few_users += int(weak_users.sum())
        few_items += int(weak_items.sum())
        keep &= ~(lone | weak_users)[users] & ~weak_items[items]
    notes = []
    if single:
        notes.append(f"{single} user(s) with a single event dropped.")
    if few_users:
        notes.append(f"{few_users} user(s) with fewer than {minima[0]} events dropped.")
    if few_items:
        notes.append(f"{few_items} item(s) with fewer than {minima[1]} events dropped.")
    return keep, notes
