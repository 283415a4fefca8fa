"""Training and testing one model with one seed."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from pangu_jax.config.resolve import to_dict
from pangu_jax.parallel.mesh import make_mesh
from pangu_jax.parallel.sharding import abstract_with_shardings
from pangu_jax.training import FitResult, Workdir, fit
from pangu_jax.training.load import load_params
from pangu_jax.training.quick_compile import quick_options
from pangu_jax.training.signals import check_stop
from pangu_jax.training.workdir import write_json
from recsys_jax.data.splits import Examples, training_interactions
from recsys_jax.evaluation.evaluator import EvaluationResult, Evaluator
from recsys_jax.sequential.config import Entry, ExperimentConfig
from recsys_jax.sequential.dataset import Dataset
from recsys_jax.sequential.model import build_model
from recsys_jax.sequential.most_popular import popularity_table

LIST_LENGTH = 10  # of the recommendations that a report shows


@dataclasses.dataclass
class Run:
    """One model and seed in its own directory below the experiment's work directory."""

    experiment: ExperimentConfig
    entry: Entry
    seed: int
    data: Dataset
    path: pathlib.Path

    def __post_init__(self):
        self.trained = self.entry.trains_on != "counts"
        self.train_config = dataclasses.replace(self.entry.train, seed=self.seed)
        self.mesh = make_mesh(self.train_config.mesh)
        uses_counts = self.experiment.loss.distribution == "popularity"
        self.model = build_model(
            self.entry.model,
            self.entry.config,
            self.experiment.loss,
            num_items=self.data.num_items,
            num_users=self.data.num_users,
            packed=self.entry.batch.packed,
            row_multiple=self.mesh.shape["model"],
            item_probabilities=self.data.item_probabilities if uses_counts else None,
        )

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """One for validation and test, so that nothing is compiled twice."""
        evaluation = self.experiment.evaluation
        single = self.mesh.devices.size == 1
        device = self.mesh.devices.flat[0]
        quick = quick_options(device) if self.train_config.quick_compile else None
        return Evaluator(
            self.model.encode,
            ks=evaluation.ks,
            popularity=self.data.item_counts,
            keep_topk=LIST_LENGTH if evaluation.examples_in_report else 0,
            num_items=self.data.num_items,
            filter_target=evaluation.rank_limit is not None,
            rank_limit=evaluation.rank_limit,
            block_items=evaluation.block_items,
            mesh=None if single else self.mesh,
            compiler_options=quick,
        )

    def describe(self) -> dict[str, Any]:
        """What makes this run what it is; written to its config.json."""
        config = self.experiment
        return to_dict(
            {
                "data": config.data,
                "split": config.split,
                "batch": self.entry.batch,
                "loss": config.loss,
                "evaluation": {"history_filter": config.evaluation.history_filter},
                "model": {"name": self.entry.model, **to_dict(self.entry.config)},
                "train": self.train_config,
            }
        )

    def train(self) -> FitResult | None:
        """Trains, or continues; None for a model without training."""
        if not self.trained:
            return None
        dataset = self.data.training_batches(self.entry, self.seed)
        example = next(iter(self.data.training_batches(self.entry, self.seed, prefetch=0)))
        validation = self.data.split.valid
        # The released protocol has no validation part: the test part is looked at on the way, and
        # the report says so.
        examples = validation if len(validation) else self.data.split.test
        evaluate = None
        if len(examples):
            evaluator = self.evaluator
            batches = self.data.evaluation_batches(examples)

            def evaluate(params, step):
                # A stop signal need not wait for the end of a long evaluation.
                result = evaluator.evaluate(
                    params, self.model.item_table, batches, progress=lambda *_: check_stop()
                )
                first = (self.train_config.best_metric, "HR@10", "NDCG@50", "MRR", "coverage@10")
                shown = {name: result.metrics[name] for name in first if name in result.metrics}
                return shown | result.metrics  # the terminal shows the first few

        started = time.perf_counter()
        with Workdir.open(self.path, self.describe(), seed=self.seed) as workdir:
            before = _seconds(self.path)
            result = fit(
                init_fn=lambda key: self.model.init(key, example),
                loss_fn=self.model.loss,
                dataset=dataset,
                config=self.train_config,
                workdir=workdir,
                mesh=self.mesh,
                evaluate=evaluate,
                describe_batch=_describe_batch,
            )
            if jax.process_index() == 0:
                seconds = before + time.perf_counter() - started
                write_json(self.path / "timing.json", {"train_seconds": seconds})
        return result

    @property
    def train_seconds(self) -> float:
        return _seconds(self.path)

    def params(self, which: str = "auto") -> Any:
        """Parameters of the best checkpoint (by validation), or of the 'latest' one."""
        if not self.trained:
            return {"table": self._popularity()}
        example = next(iter(self.data.training_batches(self.entry, self.seed, prefetch=0)))
        boxed = jax.eval_shape(lambda key: self.model.init(key, example), jax.random.key(0))
        _, params = load_params(self.path, abstract_with_shardings(boxed, self.mesh), which=which)
        return params

    def _popularity(self) -> np.ndarray:
        _, items, times = training_interactions(self.data.sequences, self.data.split.train)
        return popularity_table(items, times, self.data.num_items, self.entry.config)

    def test(self, params: Any, examples: Examples | None = None) -> EvaluationResult:
        """Full-catalogue ranking of the test part (or of `examples`)."""
        examples = self.data.split.test if examples is None else examples
        batches = self.data.evaluation_batches(examples)
        return self.evaluator.evaluate(params, self.model.item_table, batches)


def _describe_batch(batch: dict[str, np.ndarray]) -> dict[str, float]:
    if "positives" in batch:
        return {"examples": float((batch["positives"] > 0).sum())}
    return {
        "examples": float((batch["positions"] == 0).sum() - (batch["segment_ids"] == 0).sum()),
        "tokens": float((batch["labels"] > 0).sum()),
    }


def _seconds(path: pathlib.Path) -> float:
    try:
        return float(json.loads((path / "timing.json").read_text())["train_seconds"])
    except (OSError, ValueError, KeyError):
        return 0.0
