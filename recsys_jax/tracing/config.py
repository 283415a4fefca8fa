"""The configuration of a knowledge-tracing experiment."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pangu_jax.config.resolve import ConfigError, resolve, to_dict
from pangu_jax.training.config import TrainConfig
from pangu_jax.training.optimizer import OptimizerConfig
from recsys_jax.tracing.data.load import TracingDataConfig
from recsys_jax.tracing.evaluation.protocols import (
    FEEDBACK,
    Protocol,
    parse_protocol,
    standard_protocols,
)
from recsys_jax.tracing.models.registry import ModelSpec, model_spec

Supervision = Literal["true", "own", "random_prefix", "scheduled"]
SUPERVISION = ("true", "own", "random_prefix", "scheduled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """How a model with a loss is trained; what has updates of its own (AdvKT) has its own switch.

    supervision: which responses the model reads in training. 'true': the true ones (single step,
      teacher forcing). 'own': its own samples from the first step on (the released AdvKT's way).
      'random_prefix': the true ones up to a uniform cut of each student, then its own. 'scheduled':
      the true one at each step with chance `true_share`, else its own (scheduled sampling, Bengio
      et al. 2015). The target is always the true response.
    true_share: of 'scheduled'.
    epochs: passes over the training students, and evaluation after each `eval_epochs`; None takes
      train.steps and train.eval_every as they are.
    batch_size: students of a batch.
    length_buckets: batches of students with about as many answers each, of so many lengths at most
      (one compilation each), so that little of them is padding; every answer counts alike in the
      loss whatever its batch. 1: all batches are as long as the longest sequence.
    """

    supervision: Supervision = "true"
    true_share: float = 0.5
    epochs: float | None = 100.0
    eval_epochs: float = 1.0
    batch_size: int = 64
    length_buckets: int = 4

    def __post_init__(self):
        if self.supervision not in SUPERVISION:
            raise ValueError(
                f"supervision={self.supervision!r} is unknown; allowed are "
                f"{', '.join(SUPERVISION)}."
            )
        if not 0.0 <= self.true_share <= 1.0:
            raise ValueError(f"true_share={self.true_share} must be in [0, 1].")
        if self.epochs is not None and not (self.epochs > 0 and self.eval_epochs > 0):
            raise ValueError(
                f"epochs={self.epochs} and eval_epochs={self.eval_epochs} must be above 0."
            )
        for name in ("batch_size", "length_buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """See `recsys_jax.tracing.evaluation`.

    protocols: names, or ('standard',) for all of `standard_protocols`. A protocol that feeds
      probabilities back is left out for models that read none.
    selection: protocol whose AUC on the validation students chooses the checkpoint and stops early.
    batch_size: students of a batch. resamples: of the bootstrap over students.
    """

    protocols: tuple[str, ...] = (
        "single-step",
        "open loop, threshold",
        "open loop, expected",
        "prefix 0.2, threshold",
        "prefix 0.2, expected",
        "prefix 0.5, single-step",
        "prefix 0.5, threshold",
        "prefix 0.5, expected",
        "prefix 0.8, threshold",
        "prefix 0.8, expected",
    )
    selection: str = "single-step"
    batch_size: int = 256
    resamples: int = 1000
    confidence: float = 0.95

    def __post_init__(self):
        for name in (*self.protocols, self.selection):
            if name != "standard":
                parse_protocol(name)
        if self.selection == "standard":
            raise ValueError("selection takes one protocol, such as 'single-step'.")

    def chosen(self, feedback: tuple[str, ...] = FEEDBACK) -> tuple[Protocol, ...]:
        """The protocols for a model that takes these kinds of feedback."""
        found: dict[str, Protocol] = {}
        for name in self.protocols:
            group = standard_protocols() if name == "standard" else (parse_protocol(name),)
            found |= {p.name: p for p in group}
        left_out = set(FEEDBACK) - set(feedback)
        return tuple(p for p in found.values() if p.after not in left_out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Simulated answers to given questions.

    questions: CSV or Parquet with the columns `student` and `question`, in the order in which they
      are asked, ids as in the log. None asks `ahead` more questions of each test student: the ones
      that come next in the log after the first `prefix` of its answers.
    history: 'log' gives students of the log their answers there before the questions; 'none' treats
      everybody as new.
    unknown: 'error', or 'skip' questions that the log does not have.
    samples: roll-outs, for feedback 'sample'. model: label; default: the first by name.
    output: .csv or .parquet; default <workdir>/predictions/<label>.csv.
    """

    questions: str | None = None
    prefix: float = 0.5
    ahead: int = 20
    history: Literal["log", "none"] = "log"
    unknown: Literal["error", "skip"] = "error"
    feedback: Literal["sample", "threshold"] = "sample"
    samples: int = 10
    seed: int = 0
    model: str | None = None
    output: str | None = None

    def __post_init__(self):
        for name, allowed in (
            ("history", ("log", "none")),
            ("unknown", ("error", "skip")),
            ("feedback", ("sample", "threshold")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"predict.{name}={getattr(self, name)!r} is unknown; allowed are "
                    f"{', '.join(allowed)}."
                )
        if not 0.0 <= self.prefix < 1.0 or self.ahead < 1:
            raise ValueError(
                f"predict.prefix={self.prefix} must be in [0, 1) and predict.ahead={self.ahead} "
                "at least 1."
            )


def _default_train() -> TrainConfig:
    return TrainConfig(
        log_every=50, checkpoint_every=0, best_metric="AUC", best_mode="max",
        early_stopping_patience=10, optimizer=OptimizerConfig(learning_rate=1e-3),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracingConfig:
    """Models on one set of students, with seeds, on all or on a part of the training students.

    models: label -> {'model': name, the fields of its config class, and optionally the keys of
      `OVERRIDES`}. A ConfigDict keeps them in alphabetical order.
    train_fractions: shares of the training students; the first one has the full report, the others
      are points of the sparsity curve.
    """

    experiment: str = "recsys.tracing"
    cpu_devices: int = 1
    data: TracingDataConfig = TracingDataConfig()
    learning: LearningConfig = LearningConfig()
    train: TrainConfig = dataclasses.field(default_factory=_default_train)
    evaluation: EvaluationConfig = EvaluationConfig()
    predict: PredictConfig = PredictConfig()
    seeds: tuple[int, ...] = (0,)
    train_fractions: tuple[float, ...] = (1.0,)
    models: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.models:
            raise ConfigError("--config.models is empty: name at least one model")
        for name in ("seeds", "train_fractions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"--config.{name}={values} must be distinct and not empty")
        if any(not 0.0 < share <= 1.0 for share in self.train_fractions):
            raise ConfigError(
                f"--config.train_fractions={self.train_fractions} must be in (0, 1]; a share of "
                "1 is all training students"
            )


# Keys of a model's entry that change its training instead of its architecture.
OVERRIDES = ("learning_rate", "weight_decay", "selection", *(
    field.name for field in dataclasses.fields(LearningConfig)
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of an experiment, resolved. selection: protocol that chooses its checkpoint."""

    label: str
    model: str
    config: Any
    learning: LearningConfig
    train: TrainConfig
    selection: str

    @property
    def spec(self) -> ModelSpec:
        return model_spec(self.model)

    @property
    def trained(self) -> bool:
        """Whether gradient steps train it; else it has a fit of its own."""
        return self.spec.fit is None


def model_entry(model: str, config: Any = None, **overrides: Any) -> dict[str, Any]:
    """An entry for `TracingConfig.models` with every field present, so each can be overridden.

    config: an instance of the model's config class (default: its defaults).
    """
    config = model_spec(model).config_class() if config is None else config
    if unknown := set(overrides) - set(OVERRIDES):
        raise ConfigError(f"unknown overrides {sorted(unknown)}; allowed: {', '.join(OVERRIDES)}")
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    fields.pop("max_len", None)  # one place for it: data.clean.max_length
    return to_dict({"model": model} | fields | {key: overrides.get(key) for key in OVERRIDES})


def resolve_entries(config: TracingConfig) -> list[Entry]:
    """The models of an experiment with their own settings.

    Raises:
      ConfigError: unknown model, key or value, named with a suggestion.
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
        over = {key: values.pop(key) for key in OVERRIDES if key in values}
        over = {key: value for key, value in over.items() if value is not None}
        if "max_len" in {f.name for f in dataclasses.fields(spec.config_class)}:
            # Batches are padded to a multiple of 8 steps.
            values["max_len"] = -(-config.data.clean.max_length // 8) * 8
        architecture = resolve(spec.config_class, values, path=path)
        optimizer = {k: over.pop(k) for k in ("learning_rate", "weight_decay") if k in over}
        selection = over.pop("selection", config.evaluation.selection)
        try:
            parse_protocol(selection)
            learning = dataclasses.replace(config.learning, **over)
            train = dataclasses.replace(
                config.train, optimizer=dataclasses.replace(config.train.optimizer, **optimizer)
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if spec.program is not None and learning.supervision != "true":
            raise ConfigError(
                f"{path}.supervision={learning.supervision!r} does not go with {name!r}, whose "
                f"training has updates of its own; set {path}.adversarial.supervision."
            )
        entries.append(Entry(label, name, architecture, learning, train, selection))
    return entries
