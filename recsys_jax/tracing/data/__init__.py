"""Answers of students: readers, cleaning, splits, batches, and simulated students."""

from recsys_jax.data.errors import DataError, DataWarning
from recsys_jax.tracing.data.answer_tables import AnswerColumns
from recsys_jax.tracing.data.batches import (
    EvaluationBatch,
    batches,
    evaluation_batches,
    make_batch,
)
from recsys_jax.tracing.data.bayes import bayes_of_log, bayes_probabilities
from recsys_jax.tracing.data.clean import clean
from recsys_jax.tracing.data.cleaning import CleaningConfig, CleaningReport
from recsys_jax.tracing.data.expansion import collapse, count_expanded, require_collapsed
from recsys_jax.tracing.data.load import KINDS, TracingData, TracingDataConfig, load
from recsys_jax.tracing.data.log import AnswerLog, RawAnswers
from recsys_jax.tracing.data.ragged import Ragged
from recsys_jax.tracing.data.simulator import Simulation, SimulatorConfig, World, simulate
from recsys_jax.tracing.data.splits import (
    Sequences,
    Split,
    SplitConfig,
    make_sequences,
    make_split,
    nested_subset,
)
from recsys_jax.tracing.data.training_tables import TrainingTables, training_tables
from recsys_jax.tracing.data.vocabulary import TracingVocabulary
from recsys_jax.tracing.data.write import write_lines, write_pykt, write_table

__all__ = [
    "KINDS",
    "AnswerColumns",
    "AnswerLog",
    "CleaningConfig",
    "CleaningReport",
    "DataError",
    "DataWarning",
    "EvaluationBatch",
    "Ragged",
    "RawAnswers",
    "Sequences",
    "Simulation",
    "SimulatorConfig",
    "Split",
    "SplitConfig",
    "TracingData",
    "TracingDataConfig",
    "TracingVocabulary",
    "TrainingTables",
    "World",
    "batches",
    "bayes_of_log",
    "bayes_probabilities",
    "clean",
    "collapse",
    "count_expanded",
    "evaluation_batches",
    "load",
    "make_batch",
    "make_sequences",
    "make_split",
    "nested_subset",
    "require_collapsed",
    "simulate",
    "training_tables",
    "write_lines",
    "write_pykt",
    "write_table",
]
