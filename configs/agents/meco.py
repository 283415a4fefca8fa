"""MeCo: is a tool needed? Hidden states against P(Yes) and against the text alone.

    python launch.py --config=configs/agents/meco.py --workdir=runs/meco \
        --config.data.metatool=PATH/Task1.json

Data: BFCL from a pinned wheel (Apache-2.0); MetaTool's Task 1 (MIT) where a path is given. Any
local weights: --config.model=local:FOLDER. See docs/meco.md. Needs the extras `weights`, `agents`.
"""

from agents_jax.tools.meco.config import AgentConfig, ContrastConfig, DataConfig, MecoConfig
from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict

VARIANTS = {
    "cpu": Variant("SmolLM2-135M, sets of 60 to 230 questions", "27 min", "docs/meco.md"),
    "full": Variant("every question there is", "not measured", "not measured"),
    "debug": Variant("a few questions, four layers", "1.5 min, busy", "runs through"),
}
_CPU_SIZES = {
    "default": 0, "metatool": 120, "metatool_matched": 200, "metatool_context": 80,
    "relevance": 160, "swap": 200, "meca_no_tools": 60, "meca_with_tools": 60,
    "meca_no_relevant": 60, "own_arithmetic": 0, "retrieval": 160,
}  # fmt: skip


def get_config(variant: str = "cpu"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    if variant == "cpu":
        data = DataConfig(sizes=_CPU_SIZES, per_kind=40, digits=(1,), max_chars=800)
        config = MecoConfig(
            data=data, contrast=ContrastConfig(num_queries=32), verbalised=("relevance_matched",)
        )
    elif variant == "full":
        config = MecoConfig(
            data=DataConfig(max_chars=2000, max_query_chars=2000, per_kind=60),
            contrast=ContrastConfig(num_queries=128), agent=AgentConfig(examples=600),
        )  # fmt: skip
    else:
        config = MecoConfig(
            sets=("relevance", "swap", "meca_no_relevant_multi"), layers=(-5, -3, -2, -1),
            data=DataConfig(sizes={"default": 40}, max_chars=400),
            contrast=ContrastConfig(num_queries=8, wordings=("pretend",), max_tokens=4),
            agent=AgentConfig(examples=4, max_tokens=32, data_set="relevance"), folds=3,
            seeds=(0,), min_count=4, bootstrap=50, verbalised=(), overhead_queries=2,
        )  # fmt: skip
    return as_config_dict(config)
