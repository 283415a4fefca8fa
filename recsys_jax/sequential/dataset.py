"""From a configuration to histories, splits and batches."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from pangu_jax.parallel.mesh import make_mesh
from pangu_jax.parallel.sharding import batch_part
from recsys_jax.data.batches import pairwise_dataset, training_dataset
from recsys_jax.data.evaluation import EvaluationBatches, evaluation_batches
from recsys_jax.data.load import load_log
from recsys_jax.data.schema import InteractionLog
from recsys_jax.data.sequences import SequenceSource, UserSequences
from recsys_jax.data.splits import (
    Examples,
    Split,
    make_split,
    next_event_examples,
    tile_windows,
    training_item_counts,
)
from recsys_jax.sequential.config import BatchConfig, Entry, ExperimentConfig


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A log, its histories and its split, with the batches that an experiment takes from them."""

    config: ExperimentConfig
    log: InteractionLog
    sequences: SequenceSource
    split: Split

    @property
    def num_items(self) -> int:
        return self.log.num_items

    @property
    def num_users(self) -> int:
        return self.log.num_users

    @property
    def num_events(self) -> int:
        return int(self.sequences.lengths.sum())

    def history(self, user: int) -> np.ndarray:
        """All items of a user in time order, int32."""
        stop = self.sequences.lengths[user : user + 1]
        return self.sequences.ranges(np.array([user]), np.zeros(1, np.int64), stop)[0]

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """Training interactions per item, int64 (num_items + 1,); entry 0 is 0."""
        return training_item_counts(self.sequences, self.split.train)

    @property
    def item_probabilities(self) -> np.ndarray:
        """Training popularity, float32 (num_items,), for popularity-distributed negatives."""
        counts = self.item_counts[1:].astype(np.float64)
        return (counts / counts.sum()).astype(np.float32)

    def training_examples(self, batch: BatchConfig) -> Examples:
        examples = self.split.train
        return tile_windows(examples, batch.max_len) if batch.tile_history else examples

    def training_batches(self, entry: Entry, seed: int, prefetch: int = 4):
        """Endless grain batches for one model: sequences, or pairs for BPR-MF."""
        batch = entry.batch
        index, count = batch_part(make_mesh(self.config.train.mesh))
        processes = dict(process_index=index, process_count=count, prefetch=prefetch)
        if entry.trains_on == "pairs":
            return pairwise_dataset(
                self.sequences,
                self.split.train,
                batch_size=batch.batch_size,
                seed=seed,
                **processes,
            )
        return training_dataset(
            self.sequences,
            self.training_examples(batch),
            batch_size=batch.batch_size,
            max_len=batch.max_len,
            packed=batch.packed,
            row_length=batch.row_length,
            rows=self.packed_rows(batch) if batch.packed else None,
            seed=seed,
            **processes,
        )

    def packed_rows(self, batch: BatchConfig) -> int:
        """Rows that hold about batch_size users, rounded up to what the mesh divides."""
        from recsys_jax.data.windows import packed_rows

        ways = max(1, self._data_ways())
        lengths = self.training_examples(batch).lengths(batch.max_len)
        return packed_rows(lengths, batch.batch_size, batch.row_length or batch.max_len, ways)

    def _data_ways(self) -> int:
        mesh = self.config.train.mesh
        ways = mesh.data if mesh.data > 0 else jax.device_count() // max(mesh.model, 1)
        return ways * self.config.train.grad_accumulation

    def evaluation_batches(
        self,
        examples: Examples,
        request_times: np.ndarray | None = None,
        keep_order: bool = False,
    ) -> EvaluationBatches:
        """Padded batches; by length, which is faster, unless the order is to be kept."""
        evaluation = self.config.evaluation
        index, count = batch_part(make_mesh(self.config.train.mesh))
        return evaluation_batches(
            self.sequences,
            examples,
            batch_size=evaluation.batch_size,
            max_len=self.config.batch.max_len,
            filter=evaluation.history_filter,
            buckets=not keep_order,
            request_times=request_times,
            process_index=index,
            process_count=count,
        )

    def next_events(self) -> Examples:
        return next_event_examples(self.sequences)


def load_dataset(config: ExperimentConfig) -> Dataset:
    """Reads the log of a configuration (in memory, or as shards on disk) and splits it."""
    if config.data.shards:
        log, sequences = _from_shards(config)
    else:
        log = load_log(config.data)
        sequences = UserSequences.from_log(log, config.split.order)
    split = make_split(config.split.kind, **config.split.options())(sequences)
    return Dataset(config, log, sequences, split)


def _from_shards(config: ExperimentConfig) -> tuple[InteractionLog, SequenceSource]:
    """Histories on disk, and a log that knows the ids but holds no event."""
    from recsys_jax.data.errors import DataError
    from recsys_jax.data.out_of_core import preprocess

    data = config.data
    if data.source not in ("csv", "parquet") or not data.path:
        raise DataError(
            f"data.shards needs data.source=csv or parquet and data.path, got {data.source!r} and "
            f"{data.path!r}."
        )
    if config.split.order != "stable" or data.min_item_events or data.min_rating is not None:
        raise DataError(
            "data.shards does not support split.order='official', data.min_item_events or "
            "data.min_rating; filter the log first or load it in memory (no data.shards)."
        )
    sequences = preprocess(
        data.path,
        data.shards,
        kind=data.source,
        columns=data.columns,
        separator=data.separator,
        time_scale=data.time_scale,
        min_user_events=data.min_user_events,
        report=print,
    )
    none = np.zeros(0, np.int32)
    log = InteractionLog(
        user=none,
        item=none,
        timestamp=none.astype(np.int64),
        user_ids=sequences.user_ids(),
        item_ids=sequences.item_vocabulary().ids,
        name=pathlib.Path(data.path).stem,
    )
    return log, sequences
