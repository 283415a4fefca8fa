"""The configuration of a sequential-recommendation experiment."""

from __future__ import annotations

import dataclasses
from typing import Any

from pangu_jax.config.resolve import ConfigError, resolve
from pangu_jax.training.config import TrainConfig
from recsys_jax.data.load import LogConfig
from recsys_jax.sequential.layers import check_choice
from recsys_jax.sequential.losses import LossConfig
from recsys_jax.sequential.model import model_spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How histories are split; see `recsys_jax.data.splits`."""

    kind: str = "leave_one_out"  # leave_one_out | fuxi_official | temporal
    order: str = "stable"  # of events with equal times: stable | official (unstable sort)
    valid_quantile: float = 0.8  # temporal: share of events before validation starts
    test_quantile: float = 0.9  # temporal: share of events before the test starts
    valid_from: int | None = None  # temporal: a time in place of the quantile
    test_from: int | None = None
    targets: str = "first"  # temporal: which held-out events are targets: first | last | all

    def options(self) -> dict[str, Any]:
        if self.kind != "temporal":
            return {}
        return {
            "valid_quantile": self.valid_quantile,
            "test_quantile": self.test_quantile,
            "valid_from": self.valid_from,
            "test_from": self.test_from,
            "targets": self.targets,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Shape of training batches.

    `packed` puts several users into one row of `row_length` columns (default max_len), which
    saves the work on padding; a batch then holds about `batch_size` users instead of exactly.
    `tile_history` trains on the whole of a long history in windows of max_len, not only on the
    most recent window (the released code does the latter).
    """

    batch_size: int = 128
    max_len: int = 200
    packed: bool = True
    row_length: int | None = None
    tile_history: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Full-catalogue ranking; see `recsys_jax.evaluation`."""

    ks: tuple[int, ...] = (1, 5, 10, 50)
    batch_size: int = 256
    history_filter: str = "all"  # all | window (released code: only the model's own window)
    block_items: int | None = None
    rank_limit: int | None = None  # released code: 2500
    confidence: float = 0.95
    resamples: int = 2000
    examples_in_report: int = 5

    def __post_init__(self):
        check_choice("evaluation.history_filter", self.history_filter, ("all", "window"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Top-k lists for users of the log, or for a file of histories never seen in training."""

    k: int = 10
    histories: str | None = None  # CSV, Parquet or JSONL with the log's column names
    unknown: str = "error"  # error | skip: items that training never saw
    request_time: int | None = None  # time of the request; default: each user's last event
    output: str | None = None  # default: <workdir>/predictions/<model>.parquet; .csv works too
    model: str | None = None  # label of one model; default: the first by name

    def __post_init__(self):
        check_choice("predict.unknown", self.unknown, ("error", "skip"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A comparison of one or more models on one data set with equal budgets.

    models: label -> {'model': name, the fields of its config class, and optionally the training
    overrides of `OVERRIDES`}. A ConfigDict keeps them in alphabetical order.
    """

    experiment: str = "recsys.sequential"
    cpu_devices: int = 1
    data: LogConfig = LogConfig()
    split: SplitConfig = SplitConfig()
    batch: BatchConfig = BatchConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    predict: PredictConfig = PredictConfig()
    seeds: tuple[int, ...] = (0,)
    models: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.models:
            raise ConfigError("--config.models is empty: name at least one model")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"--config.seeds={self.seeds} must be distinct and not empty")


# Keys of a model's entry that change its training instead of its architecture.
OVERRIDES = {
    "learning_rate": float,
    "weight_decay": float,
    "batch_size": int,
    "steps": int,
    "eval_every": int,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of an experiment, resolved."""

    label: str
    model: str
    config: Any  # its config class
    batch: BatchConfig
    train: TrainConfig

    @property
    def trains_on(self) -> str:
        return model_spec(self.model).trains_on


def model_entry(model: str, config: Any = None, **overrides: Any) -> dict[str, Any]:
    """An entry for `ExperimentConfig.models` with every field present, so each can be overridden.

    `config` is an instance of the model's config class (default: its defaults).
    """
    config = model_spec(model).config_class() if config is None else config
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    fields.pop("max_len", None)  # one place for it: config.batch.max_len
    return {"model": model} | fields | {key: overrides.get(key) for key in OVERRIDES}


def resolve_entries(config: ExperimentConfig) -> list[Entry]:
    """The models of an experiment with their own config, batch and training settings.

    Raises:
      ConfigError: unknown model or key, named with a suggestion.
    """
    entries = []
    for label, values in config.models.items():
        path = f"--config.models.{label}"
        values = dict(values)
        name = values.pop("model", label)
        try:
            spec = model_spec(name)
        except ValueError as error:
            raise ConfigError(f"{path}.model: {error}") from error
        over = {key: values.pop(key, None) for key in OVERRIDES}
        fields = {f.name for f in dataclasses.fields(spec.config_class)}
        if "max_len" in fields:
            values["max_len"] = config.batch.max_len
        architecture = resolve(spec.config_class, values, path=path)
        optimizer, train, batch = config.train.optimizer, config.train, config.batch
        for key in ("learning_rate", "weight_decay"):
            if over[key] is not None:
                optimizer = dataclasses.replace(optimizer, **{key: over[key]})
        for key in ("steps", "eval_every"):
            if over[key] is not None:
                train = dataclasses.replace(train, **{key: over[key]})
        if over["batch_size"] is not None:
            batch = dataclasses.replace(batch, batch_size=over["batch_size"])
        train = dataclasses.replace(train, optimizer=optimizer)
        entries.append(Entry(label, name, architecture, batch, train))
    return entries
