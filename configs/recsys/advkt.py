"""AdvKT and its parts: does adversarial multi-step training help, and what does?

    python launch.py --config=configs/recsys/advkt.py                       # simulated students
    python launch.py --config=configs/recsys/advkt.py:assist2009 --config.data.path=assist2009_pid

One generator, trained in several ways on the same students, beside the floors; every checkpoint is
chosen by the same protocol. `few` of the training students: --config.train_fractions=(1.0,0.25,0.1)
gives the sparsity curve. See docs/advkt.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from configs.recsys import _tracing as base
from pangu_jax.config.catalogue import Variant
from recsys_jax.tracing.advkt.config import AdversarialConfig

SELECTION = "prefix 0.5, threshold"
# Ours: true responses up to a random cut, rewards for what follows it.
CONTINUATIONS = {
    "supervision": "random_prefix", "policy_on": "continuations", "normalize_advantages": True,
    "terminal": "zero",
}  # fmt: skip
# Ours: a discriminator of true, flipped and generated responses alone, whose penalty does not
# outweigh what it is to learn.
RESPONSES_ALONE = {
    "discriminator_rate": 5e-4, "discriminator_every": 1, "gp_weight": 1.0,
    "augmented_weight": 0.0, "short_weight": 0.0, "constraint_weight": 0.0,
}  # fmt: skip
RASCH = {"question_embedding": "rasch"}  # ours: one number for each question
_TERMS = ("flip", "generated", "augmented", "short", "constraint", "gp")

VARIANTS = {
    "simulated": Variant(
        "14 ways on simulated students, 3 seeds", "45 min a seed on busy cores", "docs/advkt.md"
    ),
    "terms": Variant("each term of the discriminator's loss left out", "not measured", "see docs"),
    "assist2009": Variant(
        "14 ways on ASSISTments 2009, 3 seeds", "not measured as a whole", "docs/advkt.md"
    ),
    "plus": Variant(
        "advkt_plus (ours) beside four models, simulated students", "not measured", "see docs"
    ),
    "ednet": Variant(
        "advkt_plus and logistic regression on EdNet", "8 min, busy", "single-step AUC .730, .735"
    ),
    "csv": Variant("advkt_plus and DKT on a CSV file", "depends on the log", "your numbers"),
    "debug": Variant("3 ways, tiny, 120 students", "34 s", "runs through"),
}


def _entry(question_loss: float = 1.0, sizes: dict[str, Any] | None = None, **adversarial: Any):
    """AdvKT with these settings of its training; released defaults but for the fixed defects."""
    config = dataclasses.replace(AdversarialConfig(), **adversarial)
    return base.entry(
        "advkt", {"batch_size": 32, "selection": SELECTION},
        question_loss_weight=question_loss, adversarial=config, **sizes or {},
    )  # fmt: skip


def ways(sizes: dict[str, Any] | None = None) -> base.Models:
    """The generator trained in the ways that docs/advkt.md compares, by name."""

    def entry(question_loss: float = 1.0, network: dict[str, Any] | None = None, **adversarial):
        return _entry(question_loss, (sizes or {}) | (network or {}), **adversarial)

    return {
        "a_teacher_forced": entry(0.0, supervision="true", rl_weight=0.0),
        "b_own_samples": entry(0.0, supervision="own", rl_weight=0.0),
        "b2_random_prefix": entry(0.0, supervision="random_prefix", rl_weight=0.0),
        "c_question_loss": entry(1.0, supervision="own", rl_weight=0.0),
        "d_released_reward": entry(1.0, supervision="own", reward_response="released"),
        "e_advkt": entry(1.0, supervision="own"),
        "g_prefix_and_walks": entry(0.0, supervision="random_prefix"),
        "h_prefix_and_continuations": entry(0.0, **CONTINUATIONS),
        "i_prefix_and_little_reward": entry(0.0, **CONTINUATIONS, rl_weight=0.1),
        "j_prefix_and_flips": entry(0.0, **CONTINUATIONS, **RESPONSES_ALONE, generated_weight=0.0),
        "k_prefix_and_adversary": entry(0.0, **CONTINUATIONS, **RESPONSES_ALONE),
        "l_own_samples_and_adversary": entry(
            0.0, **CONTINUATIONS | {"supervision": "own"}, **RESPONSES_ALONE
        ),
        "m_rasch_teacher_forced": entry(0.0, RASCH, supervision="true", rl_weight=0.0),
        "n_rasch_random_prefix": entry(0.0, RASCH, supervision="random_prefix", rl_weight=0.0),
    }


def plus(sizes: dict[str, Any] | None = None) -> dict[str, Any]:
    """advkt_plus, ours: the generator with one difficulty per question, on true answers up to a
    random cut and its own samples after it; no question loss, no discriminator. What the
    comparison of `ways` came to."""
    return ways(sizes)["n_rasch_random_prefix"]


def terms(sizes: dict[str, Any] | None = None) -> base.Models:
    """AdvKT less each term of the discriminator's loss."""
    return {f"f_no_{name}": _entry(1.0, sizes, **{f"{name}_weight": 0.0}) for name in _TERMS}


def get_config(variant: str = "simulated"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    if variant == "debug":
        chosen = ("a_teacher_forced", "b2_random_prefix", "e_advkt")
        return base.debug({k: v for k, v in ways({"dim": 8}).items() if k in chosen})
    if variant == "ednet":
        config = base.experiment(
            "ednet", {"logistic": base.entry("logistic"), "advkt_plus": plus()}
        )
        config.learning.length_buckets = 2
        config.train.early_stopping_patience = 5
        return config
    if variant in ("plus", "csv"):
        names = ("dkt",) if variant == "csv" else ("question_mean", "logistic", "dkt", "simplekt")
        models = {"advkt_plus": plus()} | {name: base.entry(name) for name in names}
        config = base.experiment("csv" if variant == "csv" else "simulated", models, epochs=40)
    elif variant == "terms":
        config = base.experiment("simulated", terms(), seeds=(0, 1, 2), epochs=40)
    else:
        config = base.experiment(variant, ways(), seeds=(0, 1, 2), epochs=40)
    config.evaluation.selection = SELECTION
    config.learning.eval_epochs = 2.0
    if variant not in (
        "assist2009",
        "csv",
    ):  # at most 80 answers: padding costs less than compilations
        config.learning.length_buckets = 1
    config.train.early_stopping_patience = 5
    return config
