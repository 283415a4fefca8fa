"""The one door to every source of answers: `load(config)`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pangu_jax.config import resolve
from recsys_jax.data.errors import DataError, suggestion
from recsys_jax.tracing.data import answer_tables, lines
from recsys_jax.tracing.data.answer_tables import AnswerColumns
from recsys_jax.tracing.data.batches import EvaluationBatch, batches, evaluation_batches
from recsys_jax.tracing.data.clean import clean
from recsys_jax.tracing.data.cleaning import CleaningConfig, CleaningReport
from recsys_jax.tracing.data.log import AnswerLog, RawAnswers
from recsys_jax.tracing.data.pykt import read_pykt
from recsys_jax.tracing.data.simulator import Simulation, SimulatorConfig, simulate
from recsys_jax.tracing.data.splits import Sequences, Split, SplitConfig, make_sequences, make_split
from recsys_jax.tracing.data.training_tables import TrainingTables, training_tables
from recsys_jax.tracing.data.vocabulary import TracingVocabulary

if TYPE_CHECKING:
    import grain

Part = Literal["train", "valid", "test"]


@dataclasses.dataclass(frozen=True)
class TracingDataConfig:
    """Where answers come from, what is kept of them and how students are divided.

    Attributes:
      kind: a key of KINDS.
      path: the file or folder; unused by 'simulated'.
      columns: for 'csv' and 'parquet'.
      separator: between the columns of a CSV file.
      concept_separator: between the concepts of one answer, as in '12_40'; '' for none.
      encoding: 'auto' | 'utf-8' | 'latin-1'.
      time_scale: timestamps of tables are divided by this, rounded down.
      num_students: draws that many students ('ednet_kt1' only); None takes all.
      sample_seed: of that draw.
      allow_concept_expanded: evaluate although rows repeat an answer for each of its concepts
        (with clean.concept_rows='keep'), which leaks responses.
    """

    kind: str = "simulated"
    path: str | None = None
    columns: AnswerColumns = AnswerColumns()
    separator: str = ","
    concept_separator: str = "_"
    encoding: str = "auto"
    time_scale: float = 1.0
    num_students: int | None = None
    sample_seed: int = 0
    clean: CleaningConfig = CleaningConfig()
    split: SplitConfig = SplitConfig()
    simulator: SimulatorConfig = SimulatorConfig()
    allow_concept_expanded: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise DataError(
                f"data.kind={self.kind!r} is unknown; allowed are {', '.join(KINDS)}."
                + suggestion(self.kind, KINDS)
            )
        if self.kind != "simulated" and not self.path:
            raise DataError(f"data.kind={self.kind!r} needs a file or folder: set data.path.")


@dataclasses.dataclass(frozen=True)
class TracingData:
    """A cleaned log, its division, and what was counted on the way.

    Attributes:
      simulation: the simulated world and the truth (rows by `log.row`), else None.
    """

    config: TracingDataConfig
    log: AnswerLog
    splits: Split
    report: CleaningReport
    vocabulary: TracingVocabulary
    simulation: Simulation | None = None

    def sequences(self, part: Part) -> Sequences:
        """The sequences of 'train', 'valid' or 'test' under the rules of config.clean."""
        return make_sequences(self.log, getattr(self.splits, part), self.config.clean)

    @functools.cached_property
    def tables(self) -> TrainingTables:
        """Difficulty, successors and candidates, from the training part only."""
        return training_tables(self.log, self.sequences("train"))

    @property
    def unseen_questions(self) -> int:
        """Questions of validation and test that the training part does not have."""
        trained = self.log.of_students(self.splits.train).question
        held_out = self.log.of_students(np.concatenate([self.splits.valid, self.splits.test]))
        return len(np.setdiff1d(held_out.question, trained))

    def training_batches(self, **options: Any) -> grain.IterDataset:
        """`batches` of the training part."""
        return batches(self.log, self.sequences("train"), **options)

    def evaluation_batches(self, part: Part, **options: Any) -> Iterator[EvaluationBatch]:
        """`evaluation_batches` of a part; leaky rows are refused unless the config allows them."""
        options = {"allow_concept_expanded": self.config.allow_concept_expanded} | options
        return evaluation_batches(self.log, self.sequences(part), **options)


def load(config: TracingDataConfig | Any | None = None) -> TracingData:
    """Reads, cleans and divides the answers that a config names.

    config: a TracingDataConfig, a mapping or ConfigDict of its keys, or None for the simulator.

    Raises:
      DataError: unknown kind, missing file, unusable content, an empty part.
      pangu_jax.config.ConfigError: an unknown key or a value of the wrong type.
    """
    config = resolve(TracingDataConfig, {} if config is None else config, path="--config.data")
    simulation = simulate(config.simulator) if config.kind == "simulated" else None
    raw = simulation.raw if simulation else KINDS[config.kind](config)
    log, report = clean(raw, config.clean)
    return TracingData(
        config=config,
        log=log,
        splits=make_split(log, config.split),
        report=report,
        vocabulary=TracingVocabulary.of(log),
        simulation=simulation,
    )


def _lines(layout: str):
    def read(config: TracingDataConfig) -> RawAnswers:
        return lines.read_lines(
            config.path, layout,
            encoding=config.encoding, concept_separator=config.concept_separator,
        )  # fmt: skip

    return read


def _table(kind: str, columns: AnswerColumns | None = None):
    def read(config: TracingDataConfig) -> RawAnswers:
        return answer_tables.read_answer_table(
            config.path, kind, columns or config.columns,
            separator=config.separator, encoding=config.encoding,
            concept_separator=config.concept_separator, time_scale=config.time_scale,
        )  # fmt: skip

    return read


def _ednet(config: TracingDataConfig) -> RawAnswers:
    return answer_tables.read_ednet(
        config.path, num_students=config.num_students, seed=config.sample_seed
    )


KINDS = {
    "simulated": None,
    "csv": _table("csv"),
    "parquet": _table("parquet"),
    "pykt": lambda config: read_pykt(config.path, encoding=config.encoding),
    "three_line": _lines("three_line"),
    "four_line": _lines("four_line"),
    "six_line": _lines("six_line"),
    "akt": _lines("four_line"),
    "dkvmn": _lines("three_line"),
    "pebg": lambda config: lines.read_pebg(config.path),
    "hakt": lambda config: lines.read_hakt(config.path),
    "assistments_2009": _table("csv", answer_tables.ASSISTMENTS_2009),
    "assistments_2012": _table("csv", answer_tables.ASSISTMENTS_2012),
    "ednet_kt1": _ednet,
}
