"""Configuration of runs of an agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from agents_jax.tools.agent.settings import LoopSettings
from pangu_jax.inference.config import EngineConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolsConfig:
    """The local tools.

    folder: what the file and document tools see; '' for a folder of ours, written into the work
      directory. now: an ISO time with its offset instead of the clock's; '' for the clock.
      timeout_s: seconds of one call. max_output_chars: longest result given to a model.
    """

    folder: str = ""
    now: str = ""
    timeout_s: float = 10.0
    max_output_chars: int = 4000


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """A run over tasks.

    model: a form of agents_jax.llm.factory (local:smollm2, http://host:8000/v1#name, ...), or
      'oracle', a script that makes the right calls of the built-in tasks. engine: of 'local:'.
      endpoint: further settings of an endpoint (agents_jax.llm.EndpointConfig).
    record: keep every answer of the model in the work directory, so that a task cut short does not
      ask again what was answered.
    policy, refiner: NAME or NAME:key=value,..., see plugins.py.
    tasks: 'builtin', or a file of tasks (tasks.py). limit: the first so many; 0 for all.
    concurrency: tasks at once; a local engine answers them in batches. max_failures: tasks in a
      row whose model failed that end the run.
    """

    experiment: str = "agents.agent"
    model: str = "local:smollm2"
    engine: EngineConfig = EngineConfig(context_length=4096)
    endpoint: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "api_key_env": None,
            "server": "openai",
            "concurrency": 8,
            "timeout": 120.0,
            "max_tokens_field": "max_tokens",
        }
    )
    record: bool = True
    policy: str = "own"
    refiner: str = "identity"
    tasks: str = "builtin"
    limit: int = 0
    loop: LoopSettings = LoopSettings()
    tools: ToolsConfig = ToolsConfig()
    concurrency: int = 4
    max_failures: int = 3

    def __post_init__(self):
        for name, low in (("limit", 0), ("concurrency", 1), ("max_failures", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed; at least {low}.")
