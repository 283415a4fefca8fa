"""The configuration of a fine-tuning run."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pangu_jax.models.lora import LoraConfig
from pangu_jax.models.remat import check_policy
from pangu_jax.training.config import TrainConfig
from pangu_jax.training.optimizer import OptimizerConfig
from pangu_jax.training.sft.distillation import DistillConfig
from pangu_jax.training.sft.preference import DpoConfig
from pangu_jax.training.sft.records import Columns
from pangu_jax.training.sft.spans import TrainOn

BUILT_IN_DATA = "builtin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and what of them is learned.

    train, held_out: a file or folder (docs/fine_tuning.md), 'builtin' for a few chats made in code;
      train None where a program hands examples over. Without held_out, `held_out_fraction` of the
      training examples are set aside, chosen by `split_seed`.
    held_out_max: evaluate on the first so many held-out examples.
    columns: names of the keys. template: 'chat' writes messages by the tokenizer's template;
      'none' takes prompt and completion as plain text. chat_template: a file with a Jinja template
      to use in place of the tokenizer's.
    train_on: which answers count, see `render_spans`.
    too_long: what becomes of examples longer than a row: 'drop', 'truncate', 'error'.
    """

    train: str | None = None
    held_out: str | None = None
    held_out_fraction: float = 0.05
    held_out_max: int = 200
    split_seed: int = 0
    columns: Columns = Columns()
    template: Literal["chat", "none"] = "chat"
    chat_template: str | None = None
    train_on: TrainOn = "all_assistant"
    too_long: Literal["drop", "truncate", "error"] = "drop"

    def __post_init__(self):
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(
                f"held_out_fraction={self.held_out_fraction} must be between 0 and 1: held-out "
                "examples say whether training helps"
            )
        if self.held_out_max < 1:
            raise ValueError(f"held_out_max={self.held_out_max} must be at least 1")


def _train() -> TrainConfig:
    return TrainConfig(
        steps=300, log_every=10, eval_every=100, checkpoint_every=100, best_metric="loss",
        best_mode="min",
        optimizer=OptimizerConfig(
            learning_rate=2e-4, schedule="cosine", warmup_steps=10, final_fraction=0.1, b2=0.999,
            clip_norm=1.0,
        ),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
    """A fine-tuning run.

    base: for `load_weights` ('smollm2', a GGUF file, a Hugging Face folder), or 'tiny', a random
      model with a tokenizer of its own, for tests. dtype: of the base and of the computation;
      parameters that are trained are float32.
    tune: 'lora' trains adapters beside the base, 'full' all of its parameters.
    objective: 'sft' cross entropy of answers, 'dpo' better against worse answers, 'distill' a
      teacher's distribution.
    seq_len: tokens of a row; batch_rows: rows of a batch. epochs: passes over the examples, in
      place of train.steps.
    remat: what is computed anew in the backward pass, see models/remat.py. On a CPU "none" was
      measured several times slower: fresh memory for what it keeps costs more.
    export: write the tuned model (full) or the adapter (LoRA) in the end. base_name: for the
      adapter's files; None: base.
    """

    experiment: str = "pangu.sft"
    cpu_devices: int = 1
    base: str = "smollm2"
    base_name: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    tune: Literal["lora", "full"] = "lora"
    objective: Literal["sft", "dpo", "distill"] = "sft"
    data: DataConfig = DataConfig()
    seq_len: int = 512
    batch_rows: int = 4
    epochs: float | None = None
    lora: LoraConfig = LoraConfig()
    dpo: DpoConfig = DpoConfig()
    distill: DistillConfig = DistillConfig()
    loss_chunk: int = 128
    remat: str = "products"
    export: bool = True
    train: TrainConfig = dataclasses.field(default_factory=_train)

    def __post_init__(self):
        for field in ("seq_len", "batch_rows"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
        if self.seq_len < 2:
            raise ValueError(f"seq_len={self.seq_len} must be at least 2: a token and its label")
        if self.loss_chunk < 0:
            raise ValueError(f"loss_chunk={self.loss_chunk} must be 0 (off) or positive")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs={self.epochs} must be above 0, or None for train.steps")
        check_policy(self.remat)
