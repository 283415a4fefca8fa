"""AdvKT as one model of the registry: settings of both networks and of their training."""

from __future__ import annotations

import dataclasses
from typing import Any

from recsys_jax.tracing.advkt.config import (
    AdversarialConfig,
    DiscriminatorConfig,
    GeneratorConfig,
)
from recsys_jax.tracing.advkt.generator import Generator
from recsys_jax.tracing.advkt.training import AdversarialProgram, build


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


# The settings of the two networks less their vocabularies; what both have stands once.
_NETWORKS = (GeneratorConfig, DiscriminatorConfig)
_SIZES = ("num_questions", "num_concepts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdvKTConfig:
    """AdvKT; every field means what it means in `GeneratorConfig`, `DiscriminatorConfig` and
    `AdversarialConfig`, and defaults are the corrected method."""

    dim: int = 64
    num_layers: int = 1
    dropout_rate: float = 0.0
    concept_divisor: str = "fixed"
    sigmoid_before_ce: bool = False
    question_mlp: bool = True
    question_loss_weight: float = 1.0
    question_embedding: str = "free"
    chunk: int = 16
    num_heads: int = 1
    masks: str = "fixed"
    shift: str = "fixed"
    attention_init: str = "xavier"
    adversarial: AdversarialConfig = AdversarialConfig()

    def __post_init__(self):
        for network in _NETWORKS:
            self._network(network, 1, 1)  # raises for values out of range

    def generator(self, num_questions: int, num_concepts: int) -> Generator:
        """The simulated student."""
        return Generator(self._network(GeneratorConfig, num_questions, num_concepts))

    def program(self, num_questions: int, num_concepts: int) -> AdversarialProgram:
        """The alternating updates of both networks."""
        generator, discriminator = (
            self._network(network, num_questions, num_concepts) for network in _NETWORKS
        )
        return build(generator, discriminator, self.adversarial)

    def _network(self, cls: type, num_questions: int, num_concepts: int) -> Any:
        own = {name: getattr(self, name) for name in _names(cls) if name not in _SIZES}
        return cls(num_questions=num_questions, num_concepts=num_concepts, **own)


def advkt_generator(config: AdvKTConfig, num_questions: int, num_concepts: int) -> Generator:
    """As the registry calls it."""
    return config.generator(num_questions, num_concepts)
