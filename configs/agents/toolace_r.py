"""ToolACE-R: rounds of tuning on what the model itself can solve, and self-refinement.

    python launch.py --config=configs/agents/toolace_r.py --workdir=runs/toolace_r

Data: the Berkeley function-calling leaderboard (Apache-2.0), from a pinned wheel; items that are
tested share no function and no question with those that are trained on. See docs/toolace_r.md.
An ablation is a further arm: started in the work directory of 'cpu', it adds to what is there.
Needs the extras `weights`, `structured` and `agents`.
"""

import dataclasses

from agents_jax.tools.toolace_r.config import (
    EvaluationConfig,
    ItemsConfig,
    RoundsConfig,
    ToolAceRConfig,
)
from agents_jax.tools.toolace_r.refinement_data import RefinementDataConfig
from agents_jax.tools.toolace_r.selection import SelectionConfig
from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.inference.config import EngineConfig
from pangu_jax.models.lora import LoraConfig
from pangu_jax.training.sft import SftConfig

_ARM = "docs/toolace_r.md"
VARIANTS = {
    "cpu": Variant("two rounds of SmolLM2-135M, split by function", "24 to 26 min", _ARM),
    "long": Variant("twice the steps, half as many items again", "66 min, busy", _ARM),
    "no_selection": Variant("cpu and an arm that learns from all items", "not measured", _ARM),
    "random_selection": Variant("cpu and as many random items", "19 min more, busy", _ARM),
    "no_refinement_data": Variant("cpu and direct examples only", "17 min more, busy", _ARM),
    "no_kept_correct": Variant("cpu and an arm whose A1 are all wrong", "not measured", _ARM),
    "continued": Variant("cpu and an arm whose rounds go on from each other", "not measured", _ARM),
    "sft": Variant("cpu and plain tuning on all items", "7 min more, busy", _ARM),
    "fixed_refinement": Variant("cpu with fixed numbers of looks up to 5", "not measured", _ARM),
    "live_to_nonlive": Variant("cpu, trained on live items, others tested", "not measured", _ARM),
    "gpu": Variant("live items up to 1,024 tokens, four rounds, all arms", "not measured", _ARM),
    "debug": Variant("a random model and a few steps", "1 min", "runs through"),
}


def get_config(variant: str = "cpu"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    config = _cpu()
    if variant == "fixed_refinement":
        evaluation = dataclasses.replace(config.evaluation, fixed_steps=(1, 2, 3, 4, 5))
        config = dataclasses.replace(config, evaluation=evaluation)
    elif variant == "live_to_nonlive":
        config = dataclasses.replace(config, data=_live(45, 400))
    elif variant == "long":
        config = _long(config)
    elif variant == "gpu":
        config = _gpu(config)
    elif variant == "debug":
        config = _debug(config)
    elif variant != "cpu":
        config = dataclasses.replace(config, arms=("toolace_r", variant))
    return as_config_dict(config)


def _cpu() -> ToolAceRConfig:
    sft = SftConfig(seq_len=640, batch_rows=3, lora=LoraConfig(rank=16, alpha=32.0))
    optimizer = dataclasses.replace(sft.train.optimizer, learning_rate=1e-3, warmup_steps=4)
    train = dataclasses.replace(sft.train, optimizer=optimizer, log_every=4, checkpoint_every=32)
    return ToolAceRConfig(
        data=ItemsConfig(
            train={"simple_python": 56, "live_simple": 42, "multiple": 28, "parallel": 20,
                   "irrelevance": 40},
            test={"simple_python": 45, "live_simple": 40, "multiple": 25, "parallel": 15,
                  "irrelevance": 30},
            validation=12, refusal_share=0.2, max_prompt_tokens=400,
        ),
        rounds=RoundsConfig(warm_up_steps=20, steps=40),
        selection=SelectionConfig(samples=4),
        # float32 reads prompts faster than int8 on a CPU and answers as the tuned model does.
        engine=EngineConfig(context_length=768, max_rows=32, decode_steps=8),
        evaluation=EvaluationConfig(
            baseline_items=40, self_consistency_samples=4, constrained=True
        ),
        sft=dataclasses.replace(sft, train=train),
    )  # fmt: skip


def _long(config: ToolAceRConfig) -> ToolAceRConfig:
    """Twice the steps and samples of 'cpu', and half as many items again."""
    optimizer = dataclasses.replace(config.sft.train.optimizer, warmup_steps=6)
    train = dataclasses.replace(config.sft.train, optimizer=optimizer, log_every=8)
    return dataclasses.replace(
        config,
        data=ItemsConfig(
            train={"simple_python": 80, "live_simple": 60, "multiple": 40, "parallel": 30,
                   "irrelevance": 60},
            test={"simple_python": 60, "live_simple": 50, "multiple": 30, "parallel": 20,
                  "irrelevance": 40},
            validation=16, max_prompt_tokens=400,
        ),
        rounds=RoundsConfig(warm_up_steps=40, steps=80),
        selection=SelectionConfig(samples=8),
        engine=dataclasses.replace(config.engine, max_rows=16, decode_steps=4),
        evaluation=EvaluationConfig(
            baseline_items=80, self_consistency_samples=6, constrained=True
        ),
        sft=dataclasses.replace(config.sft, train=train),
    )  # fmt: skip


def _live(count: int, max_prompt_tokens: int) -> ItemsConfig:
    train = {"live_simple": 0, "live_multiple": 0, "live_irrelevance": 0}
    names = ("simple_python", "multiple", "parallel", "irrelevance")
    return ItemsConfig(
        protocol="live_to_nonlive", train=train, test=dict.fromkeys(names, count), validation=16,
        max_prompt_tokens=max_prompt_tokens,
    )  # fmt: skip


def _gpu(config: ToolAceRConfig) -> ToolAceRConfig:
    """Sizes for one GPU of 24 GB or more."""
    train = dataclasses.replace(config.sft.train, log_every=20, checkpoint_every=100)
    train = dataclasses.replace(
        train, optimizer=dataclasses.replace(train.optimizer, warmup_steps=20)
    )
    return dataclasses.replace(
        config,
        arms=("toolace_r", "sft", "no_selection", "random_selection", "no_refinement_data",
              "no_kept_correct", "continued"),
        data=_live(0, 1024),
        rounds=RoundsConfig(warm_up_fraction=0.3, warm_up_steps=100, steps=240, max_rounds=4),
        selection=SelectionConfig(samples=8),
        evaluation=EvaluationConfig(
            fixed_steps=(1, 2, 3, 5), self_consistency_samples=16, constrained=True
        ),
        answer_tokens=128,
        engine=EngineConfig(weights="bfloat16", context_length=2048, max_rows=64,
                            prefill_tokens=4096, decode_steps=8),
        sft=dataclasses.replace(config.sft, dtype="bfloat16", seq_len=2048, batch_rows=8,
                                train=train),
    )  # fmt: skip


def _debug(config: ToolAceRConfig) -> ToolAceRConfig:
    """Bytes as tokens and a random model: it goes through every stage and learns nothing."""
    train = dataclasses.replace(config.sft.train, log_every=1, quick_compile=True)
    return dataclasses.replace(
        config,
        data=ItemsConfig(
            train={"simple_python": 6, "irrelevance": 4}, test={"simple_python": 3,
                                                                "irrelevance": 3},
            validation=2, refusal_share=0.5, max_prompt_tokens=700,
        ),
        rounds=RoundsConfig(warm_up_steps=1, steps=1, max_rounds=1),
        # A random model solves no call: every item is kept, so that there is something to learn.
        selection=SelectionConfig(samples=2, min_solved=0),
        refinement_data=RefinementDataConfig(wrong_share=0.25),
        evaluation=EvaluationConfig(
            fixed_steps=(1,), self_consistency_samples=2, constrained=True
        ),
        answer_tokens=12,
        engine=EngineConfig(context_length=1536, max_rows=1, prefill_tokens=1024, page_size=1536),
        sft=dataclasses.replace(config.sft, base="tiny", seq_len=1280, batch_rows=2,
                                lora=LoraConfig(rank=2), train=train),
    )  # fmt: skip
