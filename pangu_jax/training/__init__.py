"""Training: one loop for every model, with checkpoints, metrics and a work directory."""

from pangu_jax.training.config import TrainConfig
from pangu_jax.training.errors import (
    CheckpointError,
    CorruptCheckpointError,
    DataExhaustedError,
    DiskFullError,
    ForeignCheckpointError,
    NonFiniteError,
    TrainingError,
    WorkdirError,
)
from pangu_jax.training.load import load_params
from pangu_jax.training.loop import FitResult, fit
from pangu_jax.training.optimizer import OptimizerConfig
from pangu_jax.training.state import LossSums, TrainState
from pangu_jax.training.workdir import Workdir

__all__ = [
    "CheckpointError",
    "CorruptCheckpointError",
    "DataExhaustedError",
    "DiskFullError",
    "FitResult",
    "ForeignCheckpointError",
    "LossSums",
    "NonFiniteError",
    "OptimizerConfig",
    "TrainConfig",
    "TrainState",
    "TrainingError",
    "Workdir",
    "WorkdirError",
    "fit",
    "load_params",
]
