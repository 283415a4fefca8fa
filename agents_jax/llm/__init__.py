"""One interface to local and remote models: generate, score, hidden states."""

from agents_jax.llm.capabilities import CAPABILITIES, IMPLEMENTATIONS, Capabilities
from agents_jax.llm.errors import (
    BatchError,
    CallError,
    InvalidRequest,
    LlmError,
    MissingCapability,
    RecordingError,
    ReplayMiss,
)
from agents_jax.llm.interface import BaseModel, LanguageModel
from agents_jax.llm.replay import RecordedModel
from agents_jax.llm.scripted import ScriptedModel
from agents_jax.llm.types import (
    Choice,
    ContinuationScore,
    GenerateRequest,
    HiddenStates,
    HiddenStatesRequest,
    Response,
    ScoreRequest,
    Scores,
    Token,
    ToolCall,
    Usage,
    assistant,
    system,
    user,
)
