"""Fine-tuning on chats: supervised, by preference, by distillation; all parameters or LoRA."""

from pangu_jax.training.sft.config import DataConfig, SftConfig
from pangu_jax.training.sft.distillation import DistillConfig, kl_divergence
from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.experiment import TunedModel, TuneResult, train
from pangu_jax.training.sft.preference import DpoConfig, dpo_loss
from pangu_jax.training.sft.records import Chat, Columns, Pair, parse_chat, parse_pair

__all__ = [
    "Chat",
    "Columns",
    "DataConfig",
    "DistillConfig",
    "DpoConfig",
    "FineTuneError",
    "Pair",
    "SftConfig",
    "TuneResult",
    "TunedModel",
    "dpo_loss",
    "kl_divergence",
    "parse_chat",
    "parse_pair",
    "train",
]
