"""Original item ids on disk and back, so that a model can be served without its training data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.data.schema import InteractionLog


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Original ids by dense id: ids [I + 1] (int64 or object array of str), entry 0 padding."""

    ids: np.ndarray

    @classmethod
    def of_items(cls, log: InteractionLog) -> Vocabulary:
        return cls(log.item_ids)

    @functools.cached_property
    def _dense(self) -> dict[str, int]:
        return {str(key): dense for dense, key in enumerate(self.ids.tolist()) if dense}

    def dense(self, ids: Iterable) -> np.ndarray:
        """Dense ids int32 of original ids; 0 where unknown. 5 and '5' are the same id."""
        table = self._dense
        return np.array([table.get(str(key), 0) for key in ids], np.int32)

    def save(self, path: str | Path) -> None:
        """Writes a Parquet file with one column `id` in dense order, atomically."""
        import polars as pl

        path = Path(path)
        scratch = path.with_name(path.name + ".part")
        pl.DataFrame({"id": pl.Series(self.ids[1:].tolist())}).write_parquet(scratch)
        scratch.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads what `save` or the out-of-core preprocessing wrote."""
        import polars as pl

        try:
            column = pl.read_parquet(path)["id"]
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is not a vocabulary file: {error}") from error
        if column.dtype.is_integer():
            return cls(np.concatenate([[-1], column.to_numpy()]))
        return cls(np.array(["", *column.to_list()], dtype=object))
