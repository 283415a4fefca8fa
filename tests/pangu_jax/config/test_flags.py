"""Configurations on the command line: every level can be overridden, mistakes are named."""

from __future__ import annotations

import dataclasses

import pytest

from pangu_jax.config.flags import as_config_dict, check_overrides
from pangu_jax.config.resolve import ConfigError, resolve


@dataclasses.dataclass(frozen=True)
class Mix:
    weights: dict[str, float]
    noise: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    steps: int = 3
    mixtures: dict[str, Mix] = dataclasses.field(default_factory=dict)


def test_dataclasses_inside_dicts_can_be_overridden():
    run = Run(mixtures={"general": Mix({"english": 0.4, "code": 0.6})})
    config = as_config_dict(run)
    assert resolve(Run, config) == run
    check_overrides(config, ["--config.mixtures.general.weights.code=0.5"])
    config.mixtures.general.weights.code = 0.5
    config.mixtures.general.noise = 0.1
    got = resolve(Run, config).mixtures["general"]
    assert got == Mix({"english": 0.4, "code": 0.5}, 0.1)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.step=3", "Did you mean --config.steps?"),
        ("--config.mixtures.general.weights.cod=1", "weights.cod.*Did you mean .*weights.code"),
        ("--config.steps.more=1", "It has no keys below it"),
    ],
)
def test_unknown_keys(argument, message):
    config = as_config_dict(Run(mixtures={"general": Mix({"code": 1.0})}))
    with pytest.raises(ConfigError, match=message):
        check_overrides(config, [argument])
