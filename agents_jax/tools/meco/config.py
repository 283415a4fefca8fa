"""Configuration of a MeCo study."""

from __future__ import annotations

import dataclasses
from typing import Literal

from agents_jax.tools.meco.contrast import WORDINGS
from agents_jax.tools.meco.errors import MecoError
from pangu_jax.inference.config import EngineConfig

SETS = (
    "relevance_matched", "metatool_matched", "swap", "relevance", "metatool", "own_arithmetic",
    "retrieval", "meca_no_tools", "meca_with_tools", "meca_no_relevant", "meca_no_tools_multi",
    "meca_with_tools_multi", "meca_no_relevant_multi", "metatool_context",
)  # fmt: skip
PAPER_LAYERS = (-5, -4, -3, -2)
"""Layers among which the paper chooses one by validation accuracy (second-hand)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how many.

    metatool: path of MetaTool's Task1.json; sets built on it are skipped with a message where it is
    ''. sizes: examples at most per set, by name; 'default' for the others; 0 for all there are.
    caliper_metatool, caliper_relevance: of matching, see matching.py. max_chars: of BFCL query and
    function together. max_query_chars: of MetaTool queries. swap_max_gap: see bfcl_sets.load_swap.
    per_kind, digits: arithmetic questions per operation and number of digits. seed: of the draw.
    """

    metatool: str = ""
    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: {"default": 0})
    caliper_metatool: float = 0.3
    caliper_relevance: float = 0.4
    max_chars: int = 700
    max_query_chars: int = 400
    swap_max_gap: float = 0.1
    per_kind: int = 24
    digits: tuple[int, ...] = (1, 2, 3)
    seed: int = 0

    def size(self, name: str) -> int:
        """Examples at most in a set; 0 for all."""
        return self.sizes.get(name, self.sizes.get("default", 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """The meta-cognition contrast (wordings, responses and numbers are ours; the paper's unknown).

    wordings: names of contrast.WORDINGS; the first is the primary one. texts: further wordings as
    name to (strong, weak). num_queries: queries that are in no other role. max_tokens: truncations
    k = 1 .. max_tokens of the response.
    """

    wordings: tuple[str, ...] = ("pretend", "aware")
    texts: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    num_queries: int = 48
    max_tokens: int = 8

    def __post_init__(self):
        known = (*WORDINGS, *self.texts)
        for name in self.wordings:
            if name not in known:
                raise MecoError(
                    f"contrast.wordings names {name!r}; allowed: {', '.join(known)}, or what "
                    "contrast.texts holds."
                )
        if not self.wordings or self.num_queries < 4 or self.max_tokens < 1:
            raise MecoError("contrast needs a wording, num_queries >= 4 and max_tokens >= 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Effect in use: positives and negatives of relevance_matched at most, 0 for no comparison;
    max_tokens of a call."""

    examples: int = 120
    max_tokens: int = 96
    data_set: str = "relevance_matched"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MecoConfig:
    """A study.

    model: a form of agents_jax.llm.factory, 'local:NAME' or 'local:FOLDER', whose hidden states can
      be had. engine: sizes and types of the local engine.
    layers: negative; () for those of all blocks. primary_layers: among which MeCo's layer is chosen
      (paper: -5 to -2). layer_choice: by validation accuracy (paper) or AUROC.
    folds: each tests once, one is for thresholds and layer, the others fit. seeds: of folds and of
      the order of pairs.
    orientation: of the dual threshold, B as primary. min_count: an answer that fewer validation
      examples have is never turned.
    bootstrap: draws. verbalised: sets in which stated confidence is asked for.
    overhead_queries: timed one by one; 0 for none.
    embeddings: static text embeddings among the controls without a model (WordLlama's wheel).
    """

    experiment: str = "agents.meco"
    model: str = "local:smollm2"
    engine: EngineConfig = EngineConfig(max_rows=8)
    sets: tuple[str, ...] = SETS
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    contrast: ContrastConfig = dataclasses.field(default_factory=ContrastConfig)
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    layers: tuple[int, ...] = ()
    primary_layers: tuple[int, ...] = PAPER_LAYERS
    folds: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    orientation: Literal["A", "B"] = "B"
    min_count: int = 20
    layer_choice: Literal["accuracy", "auroc"] = "accuracy"
    bootstrap: int = 1000
    verbalised: tuple[str, ...] = ("metatool_matched", "relevance_matched")
    overhead_queries: int = 16
    embeddings: bool = True

    def __post_init__(self):
        for name in (*self.sets, *self.verbalised):
            if name not in SETS:
                raise MecoError(f"sets names {name!r}; allowed: {', '.join(SETS)}.")
        if not self.sets or not self.seeds or self.folds < 3:
            raise MecoError("a study needs sets, seeds and folds >= 3.")
        if any(layer >= 0 for layer in (*self.layers, *self.primary_layers)):
            raise MecoError(
                f"layers={self.layers}, primary_layers={self.primary_layers}: layers are negative, "
                "counted from the end as Hugging Face does."
            )
