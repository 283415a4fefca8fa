"""The tracing models by name: config class, module and, where there is one, a closed-form fit.

Modules take (config, num_questions, num_concepts); ids run from 1 to these numbers. To add a model:
import it here and add a line to MODELS; `tests/recsys_jax/tracing/models/test_contract.py` then
checks it against the contract of `recsys_jax.tracing.interface`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from recsys_jax.tracing.advkt.model import AdvKTConfig, advkt_generator
from recsys_jax.tracing.models.akt import AKT, AKTConfig
from recsys_jax.tracing.models.atkt import ATKT, ATKTConfig
from recsys_jax.tracing.models.bkt import BKT, BKTConfig, fit_bkt
from recsys_jax.tracing.models.cl4kt import CL4KT, CL4KTConfig
from recsys_jax.tracing.models.contrastive import difficulty_neighbours
from recsys_jax.tracing.models.dkt import DKT, DKTConfig
from recsys_jax.tracing.models.dkt2_multi import DKT2Multi, DKT2MultiConfig
from recsys_jax.tracing.models.dkt_plus import DKTPlus, DKTPlusConfig
from recsys_jax.tracing.models.dkvmn import DKVMN, DKVMNConfig
from recsys_jax.tracing.models.iekt import IEKT, IEKTConfig
from recsys_jax.tracing.models.logistic import Logistic, LogisticConfig, fit_logistic
from recsys_jax.tracing.models.question_mean import (
    QuestionMean,
    QuestionMeanConfig,
    fit_question_mean,
)
from recsys_jax.tracing.models.saint import SAINT, SAINTConfig
from recsys_jax.tracing.models.sakt import SAKT, SAKTConfig
from recsys_jax.tracing.models.simplekt import SimpleKT, SimpleKTConfig


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model that a config may name.

    module: (config, num_questions, num_concepts) -> a Flax module that is a `TracingModel`.
    fit: (module, Batch of the training students) -> variables, for models that are not trained by
    gradient steps; None for the others.
    arguments: (Batch of the training students, num_concepts) -> further keyword arguments of the
    module's call in training, arrays made of training data; None for nothing.
    program: (config, num_questions, num_concepts) -> a `StepProgram` with updates of its own, whose
    parameters hold the module's under 'generator'; None for models with a loss.
    """

    config_class: type
    module: Callable[..., nn.Module]
    fit: Callable[..., Any] | None = None
    arguments: Callable[..., dict[str, Any]] | None = None
    program: Callable[..., Any] | None = None


MODELS: dict[str, ModelSpec] = {
    # Recurrent models, memories and counts.
    "question_mean": ModelSpec(QuestionMeanConfig, QuestionMean, fit_question_mean),
    "logistic": ModelSpec(LogisticConfig, Logistic, fit_logistic),
    "bkt": ModelSpec(BKTConfig, BKT, fit_bkt),
    "dkt": ModelSpec(DKTConfig, DKT),
    "dkt_plus": ModelSpec(DKTPlusConfig, DKTPlus),
    "dkvmn": ModelSpec(DKVMNConfig, DKVMN),
    "atkt": ModelSpec(ATKTConfig, ATKT),
    "iekt": ModelSpec(IEKTConfig, IEKT),
    "dkt2_multi": ModelSpec(DKT2MultiConfig, DKT2Multi),
    # Attention models: one line each.
    "sakt": ModelSpec(SAKTConfig, SAKT),
    "saint": ModelSpec(SAINTConfig, SAINT),
    "akt": ModelSpec(AKTConfig, AKT),
    "simplekt": ModelSpec(SimpleKTConfig, SimpleKT),
    "cl4kt": ModelSpec(
        CL4KTConfig,
        CL4KT,
        arguments=lambda batch, concepts: {"neighbours": difficulty_neighbours(batch, concepts)},
    ),
    # Adversarial multi-step training: the generator.
    "advkt": ModelSpec(
        AdvKTConfig,
        advkt_generator,
        program=lambda config, questions, concepts: config.program(questions, concepts),
    ),
}


def model_spec(name: str) -> ModelSpec:
    """The model called `name`; ValueError with a suggestion when there is none."""
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, 1, 0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown tracing model {name!r}.{hint} Known models: {', '.join(MODELS)}")


def build(name: str, config: Any = None, *, num_questions: int, num_concepts: int) -> nn.Module:
    """The module of model `name`.

    config: an instance of the model's config class; None for its defaults. num_questions,
    num_concepts: the largest ids.

    Raises:
      ValueError: unknown name; a size below 1.
      TypeError: the config belongs to another model.
    """
    spec = model_spec(name)
    config = spec.config_class() if config is None else config
    if not isinstance(config, spec.config_class):
        raise TypeError(
            f"model {name!r} takes a {spec.config_class.__name__}, got {type(config).__name__}"
        )
    for label, size in (("num_questions", num_questions), ("num_concepts", num_concepts)):
        if size < 1:
            raise ValueError(f"{label}={size} must be at least 1: ids run from 1, 0 is padding")
    return spec.module(config, num_questions, num_concepts)
