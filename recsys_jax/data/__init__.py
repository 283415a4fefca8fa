"""Interaction logs, histories, splits and batches of the recommenders."""

from recsys_jax.data.array_record_sequences import ArrayRecordSequences
from recsys_jax.data.errors import DataError, DataWarning
from recsys_jax.data.load import Columns, LogConfig, load_log
from recsys_jax.data.schema import InteractionLog, build_log
from recsys_jax.data.sequences import SequenceSource, UserSequences
from recsys_jax.data.splits import (
    SPLITS,
    Examples,
    FuxiOfficial,
    LeaveOneOut,
    Split,
    TemporalGlobal,
    make_split,
    next_event_examples,
    tile_windows,
    training_interactions,
    training_item_counts,
)
from recsys_jax.data.vocabulary import Vocabulary

__all__ = [
    "SPLITS",
    "ArrayRecordSequences",
    "Columns",
    "DataError",
    "DataWarning",
    "Examples",
    "FuxiOfficial",
    "InteractionLog",
    "LeaveOneOut",
    "LogConfig",
    "SequenceSource",
    "Split",
    "TemporalGlobal",
    "UserSequences",
    "Vocabulary",
    "build_log",
    "load_log",
    "make_split",
    "next_event_examples",
    "tile_windows",
    "training_interactions",
    "training_item_counts",
]
