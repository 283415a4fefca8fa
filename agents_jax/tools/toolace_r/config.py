"""The configuration of an experiment, and the arms that it can hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from agents_jax.tools.bfcl.data import CATEGORIES
from agents_jax.tools.bfcl.prompts import Style
from agents_jax.tools.toolace_r.refine import RefineConfig
from agents_jax.tools.toolace_r.refinement_data import RefinementDataConfig
from agents_jax.tools.toolace_r.selection import SelectionConfig
from agents_jax.tools.toolace_r.self_consistency import Count
from pangu_jax.inference.config import EngineConfig
from pangu_jax.training.sft import SftConfig

MAIN = "toolace_r"
Protocol = Literal["by_function", "live_to_nonlive"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemsConfig:
    """Which BFCL items are learned from and tested on.

    protocol: 'by_function' splits all categories so that both parts share no function and no
      question; 'live_to_nonlive' trains on live categories and tests on the others.
    train, test: number of items by category, 0 for all there are; drawn by `seed`. Under
      'by_function' every category of `test` must be in `train`.
    refusal_share: items where no call is due, as a share of the training items with calls; at most
      what `train` allows. 0 for none.
    validation: training items set aside for the loss of each tuning; never trained on or tested.
    max_prompt_tokens: longer items are left out. held_out_fraction: of 'by_function'.
    """

    protocol: Protocol = "by_function"
    style: Style = "compact"
    train: dict[str, int] = dataclasses.field(default_factory=dict)
    test: dict[str, int] = dataclasses.field(default_factory=dict)
    refusal_share: float = 0.125
    validation: int = 24
    max_prompt_tokens: int = 448
    held_out_fraction: float = 0.25
    seed: int = 0

    def __post_init__(self):
        if self.protocol not in ("by_function", "live_to_nonlive"):
            raise ValueError(
                f"protocol={self.protocol!r} is unknown; allowed: by_function, live_to_nonlive."
            )
        for name in ("train", "test"):
            counts = getattr(self, name)
            if not counts:
                raise ValueError(f"{name} names no category; allowed: {', '.join(CATEGORIES)}.")
            for category, count in counts.items():
                if category not in CATEGORIES or (name == "train" and "_relevance" in category):
                    raise ValueError(
                        f"{name} has category {category!r}; allowed: {', '.join(CATEGORIES)}"
                        f"{' without live_relevance' if name == 'train' else ''}."
                    )
                if count < 0:
                    raise ValueError(f"{name}.{category}={count} must be 0 (all) or more.")
        live = {name: [c.startswith("live_") for c in getattr(self, name)] for name in _PARTS}
        if self.protocol == "live_to_nonlive" and (not all(live["train"]) or any(live["test"])):
            raise ValueError(
                "protocol='live_to_nonlive' trains on live_ categories and tests on others; train "
                f"has {', '.join(self.train)}, test {', '.join(self.test)}."
            )
        extra = set(self.test) - set(self.train)
        if self.protocol == "by_function" and extra:
            raise ValueError(
                f"protocol='by_function' splits the categories of train; test has also "
                f"{', '.join(sorted(extra))}. Add them to train."
            )
        if self.refusal_share < 0:
            raise ValueError(f"refusal_share={self.refusal_share} must be 0 or more.")
        if self.validation < 1:
            raise ValueError(f"validation={self.validation} must be at least 1.")


_PARTS = ("train", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Rounds of training. Which of these the paper chose is not known.

    warm_up_fraction: of the training items, on which round 0 is tuned. warm_up_steps, steps:
      optimizer steps of round 0 and of every later round, the same in all arms.
    max_rounds: rounds after round 0 at most. min_growth: the main arm ends before a round whose
      selection has not grown by more than this share; None: always max_rounds. Other arms have as
      many rounds as the main one.
    restart: each round tunes the base anew; False goes on from the last round's model.
    """

    warm_up_fraction: float = 0.4
    warm_up_steps: int = 40
    steps: int = 80
    max_rounds: int = 2
    min_growth: float | None = 0.02
    restart: bool = True

    def __post_init__(self):
        if not 0 < self.warm_up_fraction <= 1:
            raise ValueError(
                f"warm_up_fraction={self.warm_up_fraction} must be above 0 and at most 1."
            )
        for name in ("warm_up_steps", "steps", "max_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured on the test items.

    baseline_items: test items on which the untuned model is asked, zero- and few-shot; 0: all.
    refine_rounds: refine adaptively after every round, not only after the last.
    fixed_steps: fixed numbers of looks measured after the last round.
    self_consistency_samples: of the vote at most; 0 for none. self_consistency_temperature.
    equal_cost: tokens that make the vote and refinement equally dear: 'total' (prompt and new) or
      'new'.
    constrained: the untuned model and the main arm's last round also answer with decoding held to
      calls of the functions on offer or the refusal, the untuned model to calls alone as well.
      Needs the extras `structured` and `agents`; left out where a server takes no patterns.
    """

    baseline_items: int = 0
    refine_rounds: bool = True
    fixed_steps: tuple[int, ...] = (1, 2, 3)
    self_consistency_samples: int = 8
    self_consistency_temperature: float = 0.7
    equal_cost: Count = "total"
    constrained: bool = False

    def __post_init__(self):
        if self.baseline_items < 0 or self.self_consistency_samples < 0:
            raise ValueError("baseline_items and self_consistency_samples must be 0 or more.")
        if any(steps < 1 for steps in self.fixed_steps):
            raise ValueError(f"fixed_steps={self.fixed_steps} must each be at least 1.")
        if not self.self_consistency_temperature > 0:
            raise ValueError(
                f"self_consistency_temperature={self.self_consistency_temperature} must be above 0."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolAceRConfig:
    """A run.

    arms: names out of ARMS; each is tuned and measured on the same items with equally many steps.
      A work directory can be given further arms later. Other arms are compared with 'toolace_r'.
    model: a form of agents_jax.llm.factory (http://HOST:8000/v1#NAME, local:FILE, ...) that is
      measured as it is (mode 'eval') in place of tuning; '' tunes. endpoint: further settings of
      an endpoint (agents_jax.llm.EndpointConfig).
    answer_tokens: new tokens of an answer at most.
    engine: that answers; adapters are merged into the weights first. sft: every tuning; its data,
      epochs, steps and evaluations are replaced.
    """

    experiment: str = "agents.toolace_r"
    arms: tuple[str, ...] = (MAIN,)
    data: ItemsConfig
    selection: SelectionConfig = SelectionConfig()
    refinement_data: RefinementDataConfig = RefinementDataConfig()
    rounds: RoundsConfig = RoundsConfig()
    refine: RefineConfig = RefineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    model: str = ""
    endpoint: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"api_key_env": None, "server": "openai", "concurrency": 8}
    )
    answer_tokens: int = 96
    engine: EngineConfig = EngineConfig(context_length=1024)
    sft: SftConfig = dataclasses.field(default_factory=SftConfig)

    def __post_init__(self):
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms={self.arms} must name at least one arm, and each once.")
        for name in self.arms:
            if name not in ARMS:
                raise ValueError(f"arm {name!r} is unknown; allowed: {', '.join(ARMS)}.")
        if MAIN in self.arms[1:]:
            raise ValueError(
                f"arms={self.arms}: {MAIN!r} must come first; others follow its rounds."
            )
        if "random_selection" in self.arms and MAIN not in self.arms:
            raise ValueError(
                f"arm 'random_selection' draws as many items as {MAIN!r} selects; put that first."
            )
        if self.answer_tokens < 1:
            raise ValueError(f"answer_tokens={self.answer_tokens} must be at least 1.")
        if self.sft.objective != "sft":
            raise ValueError(f"sft.objective={self.sft.objective!r}; only 'sft' is meant here.")
        room = self.engine.context_length - self.data.max_prompt_tokens
        words = len(re.findall(r"\w+|\W", self.refine.instruction))
        if room < 2 * self.answer_tokens:
            raise ValueError(
                f"engine.context_length={self.engine.context_length} has no room for a prompt of "
                f"data.max_prompt_tokens={self.data.max_prompt_tokens}, an answer of "
                f"answer_tokens={self.answer_tokens}, an instruction of about {words} tokens and "
                "one more answer; raise it."
            )


ARMS: dict[str, dict[str, dict]] = {
    MAIN: {},
    "no_selection": {"selection": {"rule": "none"}},
    "random_selection": {"selection": {"rule": "random"}},
    "no_refinement_data": {"refinement_data": {"per_direct": 0.0}},
    "no_kept_correct": {"refinement_data": {"keep_correct": False}},
    "continued": {"rounds": {"restart": False}},
    "sft": {"selection": {"rule": "none"}, "refinement_data": {"per_direct": 0.0}},
}
"""What each arm changes in the configuration: its groups and their fields."""


def of_arm(config: ToolAceRConfig, arm: str) -> ToolAceRConfig:
    """The configuration with what the arm changes."""
    changes = {
        group: dataclasses.replace(getattr(config, group), **fields)
        for group, fields in ARMS[arm].items()
    }
    return dataclasses.replace(config, **changes)
