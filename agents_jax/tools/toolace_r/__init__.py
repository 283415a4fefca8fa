"""ToolACE-R: rounds of training on what the model can solve, and adaptive self-refinement."""

from agents_jax.tools.toolace_r.answers import Answer, same_answer
from agents_jax.tools.toolace_r.config import ARMS, ToolAceRConfig
from agents_jax.tools.toolace_r.refine import (
    INSTRUCTION,
    RefineConfig,
    Refined,
    StoppingRule,
    refine,
)
from agents_jax.tools.toolace_r.refinement_data import (
    Corpus,
    RefinementDataConfig,
    build_corpus,
)
from agents_jax.tools.toolace_r.refiner import AdaptiveRefiner
from agents_jax.tools.toolace_r.selection import (
    Attempts,
    Selection,
    SelectionConfig,
    sample_attempts,
    select,
)
from agents_jax.tools.toolace_r.self_consistency import draw, majority, samples_for_budget

__all__ = [
    "ARMS",
    "AdaptiveRefiner",
    "Answer",
    "Attempts",
    "Corpus",
    "INSTRUCTION",
    "RefineConfig",
    "Refined",
    "RefinementDataConfig",
    "Selection",
    "SelectionConfig",
    "StoppingRule",
    "ToolAceRConfig",
    "build_corpus",
    "draw",
    "majority",
    "refine",
    "sample_attempts",
    "samples_for_budget",
    "same_answer",
    "select",
]
