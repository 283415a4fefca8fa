"""Training and evaluating one tracing model with one seed."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from pangu_jax.config.resolve import to_dict
from pangu_jax.parallel.mesh import make_mesh
from pangu_jax.parallel.sharding import abstract_with_shardings, unbox
from pangu_jax.training import FitResult, Workdir, fit
from pangu_jax.training.load import load_params
from pangu_jax.training.signals import check_stop
from pangu_jax.training.workdir import write_json
from recsys_jax.tracing.advkt.tables import build_tables
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.config import Entry, TracingConfig
from recsys_jax.tracing.data import TracingData, make_batch
from recsys_jax.tracing.evaluation.evaluator import Evaluation, evaluate
from recsys_jax.tracing.evaluation.metrics import point_metrics
from recsys_jax.tracing.evaluation.protocols import (
    SINGLE_STEP,
    Predictor,
    Protocol,
    collect,
    parse_protocol,
    predictors_of,
)
from recsys_jax.tracing.learning import make_loss
from recsys_jax.tracing.models.registry import build

# Steps of a batch: a little more than the usual 200 would cost a program of its own.
_LENGTH_MULTIPLE = 8


@dataclasses.dataclass
class Run:
    """One model and seed in its own directory below the experiment's work directory.

    data: with the training students that this run may see.
    """

    experiment: TracingConfig
    entry: Entry
    seed: int
    data: TracingData
    path: pathlib.Path

    def __post_init__(self):
        log = self.data.log
        self.sizes = (log.num_questions, log.num_concepts)
        self.model = build(
            self.entry.model, self.entry.config,
            num_questions=log.num_questions, num_concepts=log.num_concepts,
        )  # fmt: skip
        program = self.entry.spec.program
        self.program = None if program is None else program(self.entry.config, *self.sizes)
        self.train_config = self._train_config()
        self.mesh = make_mesh(self.train_config.mesh)

    def _train_config(self):
        learning = self.entry.learning
        train = dataclasses.replace(self.entry.train, seed=self.seed)
        if learning.epochs is None or not self.entry.trained:
            return train
        number = np.searchsorted(self.lengths, self.data.sequences("train").lengths)
        per_epoch = sum(math.ceil(n / learning.batch_size) for n in np.bincount(number))
        return dataclasses.replace(
            train,
            steps=max(1, round(learning.epochs * per_epoch)),
            eval_every=max(1, round(learning.eval_epochs * per_epoch)),
        )

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Rising lengths of the batches, the last one for the longest sequence of any part."""
        return batch_lengths(self.data, self.entry.learning.length_buckets)

    def describe(self) -> dict[str, Any]:
        """What makes this run what it is; written to its config.json."""
        learning = to_dict(self.entry.learning)
        del learning["epochs"]  # train.steps says it, and may grow
        return to_dict(
            {
                "data": self.data.config,
                "learning": learning,
                "selection": self.entry.selection,
                "model": {"name": self.entry.model, **to_dict(self.entry.config)},
                "train": self.train_config,
            }
        )

    # ------------------------------------------------------------------ training

    def train(self) -> FitResult | None:
        """Trains, or continues; None for a model without gradient steps."""
        if not self.entry.trained:
            return None
        dataset = self.data.training_batches(
            batch_size=self.entry.learning.batch_size, buckets=self.lengths, seed=self.seed,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        started = time.perf_counter()
        with Workdir.open(self.path, self.describe(), seed=self.seed) as workdir:
            before = self.train_seconds
            result = fit(
                init_fn=self._init, loss_fn=self._loss(), dataset=dataset,
                config=self.train_config, workdir=workdir, mesh=self.mesh,
                evaluate=self._validate, describe_batch=_describe_batch,
                program=self.program, frozen=self._frozen(),
            )  # fmt: skip
            if jax.process_index() == 0:
                seconds = before + time.perf_counter() - started
                write_json(self.path / "timing.json", {"train_seconds": seconds})
        return result

    def _init(self, key: jax.Array) -> Any:
        if self.program is not None:
            return self.program.init_params(key)
        ones = np.ones((1, 2), np.int32)
        batch = Batch(ones, np.ones((1, 2, self.data.log.max_concepts), np.int32), ones, ones > 0)
        return self.model.init(key, batch)["params"]

    def _loss(self):
        if self.program is not None:
            return None
        mean = len(self.lengths) > 1 and self.data.sequences("train").lengths.mean()
        answers = float(mean * self.entry.learning.batch_size) if mean else None
        return make_loss(self.model, self.entry.learning, answers)

    def _frozen(self) -> Any:
        """Arrays made of training data that the step reads."""
        if self.program is not None:
            return build_tables([self._training_batch()], self.sizes[0])
        arguments = self.entry.spec.arguments
        return {} if arguments is None else arguments(self._training_batch(), self.sizes[1])

    def _training_batch(self) -> Batch:
        """All training students in one batch of NumPy arrays."""
        sequences = self.data.sequences("train")
        index = np.arange(len(sequences))
        return make_batch(self.data.log, sequences, index, len(index), self.lengths[-1]).batch

    def _validate(self, params: Any, step: int) -> dict[str, float]:
        del step
        protocols = {p.name: p for p in (parse_protocol(self.entry.selection), SINGLE_STEP)}
        batches = self._batches("valid")
        rows = collect(
            self.predictor(params), _stoppable(batches), tuple(protocols.values()),
            jax.random.key(0),
        )  # fmt: skip
        chosen, single = (point_metrics(rows[n]) for n in (self.entry.selection, SINGLE_STEP.name))
        return {
            "AUC": chosen["AUC"], "ACC": chosen["ACC"], "log-loss": chosen["log-loss"],
            "single-step AUC": single["AUC"],
        }  # fmt: skip

    # ------------------------------------------------------------------ evaluation

    def params(self, which: str = "auto") -> Any:
        """Parameters of the best checkpoint (by validation), or what the closed form gives."""
        if not self.entry.trained:
            return self.entry.spec.fit(self.model, self._training_batch())
        boxed = jax.eval_shape(self._init, jax.random.key(0))
        _, params = load_params(self.path, abstract_with_shardings(boxed, self.mesh), which=which)
        return params

    def variables(self, params: Any) -> Any:
        """Variables of the model out of what `params` gives."""
        if not self.entry.trained:
            return unbox(params)
        return {"params": params["generator"] if self.program is not None else params}

    @functools.cached_property
    def _predictors(self):
        return predictors_of(self.model)

    def predictor(self, params: Any) -> Predictor:
        """The model as evaluation sees it; compiled once per run."""
        return self._predictors(self.variables(params))

    def protocols(self) -> tuple[Protocol, ...]:
        """Protocols that this model can be evaluated under."""
        return self.experiment.evaluation.chosen(self._predictors(None).feedback)

    def test(self, params: Any) -> Evaluation:
        """All protocols on the test students."""
        return evaluate(
            self.predictor(params), _stoppable(self._batches("test")), self.protocols(),
            num_resamples=self.experiment.evaluation.resamples,
        )  # fmt: skip

    def _batches(self, part: str):
        size = self.experiment.evaluation.batch_size
        return self.data.evaluation_batches(part, batch_size=size, buckets=self.lengths)

    @property
    def train_seconds(self) -> float:
        try:
            return float(json.loads((self.path / "timing.json").read_text())["train_seconds"])
        except (OSError, ValueError, KeyError):
            return 0.0


def batch_lengths(data: TracingData, count: int) -> list[int]:
    """At most `count` rising lengths, multiples of 8, that divide the students about equally; the
    last one holds the longest sequence of any part."""
    lengths = [data.sequences(part).lengths for part in ("train", "valid", "test")]
    wanted = [*np.quantile(lengths[0], np.arange(1, count) / count), max(x.max() for x in lengths)]
    return sorted({_rounded(int(np.ceil(length))) for length in wanted})


def _rounded(length: int) -> int:
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def _stoppable(batches):
    for batch in batches:
        check_stop()  # a stop signal need not wait for the end of a long evaluation
        yield batch


def _describe_batch(batch: Batch) -> dict[str, float]:
    mask = np.asarray(batch.mask)
    return {"examples": float(mask.any(-1).sum()), "tokens": float(mask.sum())}
