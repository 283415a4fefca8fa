"""BFCL's multi-turn items: environments with a state, rollouts of models, scores."""

from agents_jax.tools.bfcl.multi_turn.checker import TURN_ERROR_TYPES, check_turns
from agents_jax.tools.bfcl.multi_turn.data import (
    MULTI_TURN_CATEGORIES,
    MultiTurnItem,
    load_multi_turn,
)
from agents_jax.tools.bfcl.multi_turn.evaluate import MultiTurnReport, evaluate_multi_turn
from agents_jax.tools.bfcl.multi_turn.rollout import RolloutSettings, play
from agents_jax.tools.bfcl.multi_turn.run import RunError, read_transcripts, run_multi_turn
from agents_jax.tools.bfcl.multi_turn.sandbox import (
    ENVIRONMENTS,
    Episode,
    Limits,
    Sandbox,
    SandboxError,
)
from agents_jax.tools.bfcl.multi_turn.transcripts import Step, Turn, TurnsTranscript

__all__ = [
    "ENVIRONMENTS",
    "Episode",
    "Limits",
    "MULTI_TURN_CATEGORIES",
    "MultiTurnItem",
    "MultiTurnReport",
    "RolloutSettings",
    "RunError",
    "Sandbox",
    "SandboxError",
    "Step",
    "TURN_ERROR_TYPES",
    "Turn",
    "TurnsTranscript",
    "check_turns",
    "evaluate_multi_turn",
    "load_multi_turn",
    "play",
    "read_transcripts",
    "run_multi_turn",
]
