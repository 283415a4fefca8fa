"""One interface to local and remote models: generate, score, hidden states."""

from agents_jax.llm.call_log import Transcript
from agents_jax.llm.capabilities import CAPABILITIES, IMPLEMENTATIONS, Capabilities
from agents_jax.llm.endpoint import EndpointModel
from agents_jax.llm.endpoint_config import EndpointConfig
from agents_jax.llm.errors import (
    BatchError,
    CallError,
    InvalidRequest,
    LlmError,
    MissingCapability,
    RecordingError,
    ReplayMiss,
)
from agents_jax.llm.factory import ModelConfig, open_model
from agents_jax.llm.interface import BaseModel, LanguageModel
from agents_jax.llm.ledger import Ledger, Prices
from agents_jax.llm.replay import RecordedModel
from agents_jax.llm.requests import (
    GenerateRequest,
    HiddenStatesRequest,
    ScoreRequest,
    assistant,
    system,
    user,
)
from agents_jax.llm.results import (
    Attempt,
    Choice,
    ContinuationScore,
    Failure,
    HiddenStates,
    Response,
    Scores,
    Token,
    ToolCall,
    Usage,
)
from agents_jax.llm.retry import RetryPolicy
from agents_jax.llm.scripted import ScriptedModel

__all__ = [
    "Attempt",
    "BaseModel",
    "BatchError",
    "CAPABILITIES",
    "CallError",
    "Capabilities",
    "Choice",
    "ContinuationScore",
    "EndpointConfig",
    "EndpointModel",
    "Failure",
    "GenerateRequest",
    "HiddenStates",
    "HiddenStatesRequest",
    "IMPLEMENTATIONS",
    "InvalidRequest",
    "LanguageModel",
    "Ledger",
    "LlmError",
    "MissingCapability",
    "ModelConfig",
    "Prices",
    "RecordedModel",
    "RecordingError",
    "ReplayMiss",
    "Response",
    "RetryPolicy",
    "ScoreRequest",
    "Scores",
    "ScriptedModel",
    "Token",
    "ToolCall",
    "Transcript",
    "Usage",
    "assistant",
    "open_model",
    "system",
    "user",
]
