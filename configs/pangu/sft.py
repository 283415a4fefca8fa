"""Fine-tuning of a language model on chats: SFT, preferences (DPO), distillation; LoRA or all.

    python launch.py --config=configs/pangu/sft.py:tiny --workdir=runs/sft_tiny
    python launch.py --config=configs/pangu/sft.py:own_chats --workdir=runs/own_chats \
        --config.data.train=chats.jsonl

`tiny` and `debug` need no files; all others tune SmolLM2-135M-Instruct (--config.base takes any
GGUF file or Hugging Face folder) on files that you name. Formats and objectives:
docs/fine_tuning.md. Needs the `weights` extra.
"""

import dataclasses

from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict
from pangu_jax.models.lora import LoraConfig
from pangu_jax.training.sft.config import BUILT_IN_DATA, SftConfig

VARIANTS = {
    "own_chats": Variant("LoRA on your chats (data.train)", "depends on the chats",
                         "held-out loss below the base's"),
    "lora": Variant("the same, rank 16, one epoch", "not measured", "not measured"),
    "full": Variant("all parameters on your chats", "not measured", "not measured"),
    "dpo": Variant("LoRA on pairs of a better and a worse answer", "not measured", "not measured"),
    "distill": Variant("LoRA towards distill.teacher", "not measured", "not measured"),
    "tiny": Variant("a random model of width 32 on built-in sums", "under 1 min",
                    "held-out loss 5.66 before, 0.37 after"),
    "debug": Variant("8 steps of it", "under 1 min", "runs through"),
}  # fmt: skip


def sft_config(variant: str) -> SftConfig:
    """The run of a variant, for other configurations to change."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    config = SftConfig()
    train, optimizer = config.train, config.train.optimizer
    if variant == "lora":
        return dataclasses.replace(config, lora=LoraConfig(rank=16, alpha=32.0), epochs=1.0)
    if variant == "full":
        optimizer = dataclasses.replace(optimizer, learning_rate=2e-5)
        return dataclasses.replace(
            config, tune="full", train=dataclasses.replace(train, optimizer=optimizer)
        )
    if variant == "dpo":
        optimizer = dataclasses.replace(optimizer, learning_rate=5e-5)
        return dataclasses.replace(
            config, objective="dpo", train=dataclasses.replace(train, optimizer=optimizer)
        )
    if variant == "distill":
        return dataclasses.replace(config, objective="distill")
    if variant in ("tiny", "debug"):
        optimizer = dataclasses.replace(optimizer, learning_rate=1e-2, warmup_steps=2)
        return dataclasses.replace(
            config, base="tiny", seq_len=128, batch_rows=4, tune="full", remat="none",
            data=dataclasses.replace(config.data, train=BUILT_IN_DATA, held_out_fraction=0.1),
            lora=LoraConfig(rank=4),
            train=dataclasses.replace(
                train, steps=40 if variant == "tiny" else 8, log_every=5, eval_every=20,
                checkpoint_every=10, quick_compile=True, optimizer=optimizer,
            ),
        )  # fmt: skip
    return config


def get_config(variant: str = "own_chats"):
    return as_config_dict(sft_config(variant))
