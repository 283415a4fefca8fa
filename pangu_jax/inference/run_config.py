"""What a run of inference from the command line is made of."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.request import SamplingParams


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """--mode=generate: one prompt, or a file of them.

    prompt: a text. raw: continue it as it is; otherwise it is a user's message in the model's chat
      template, where it has one. system: message before it.
    input: JSON lines of prompts. output: JSON lines of answers; None: answers.jsonl in the work
      directory. What it answers already is not asked again.
    """

    prompt: str = ""
    raw: bool = False
    system: str = ""
    input: str | None = None
    output: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """--mode=serve: an OpenAI-compatible server.

    name: of the model in the protocol; empty: that of the configuration.
    port: 0 takes a free one. api_key_env: environment variable that holds the key clients must
      send; where it is not set, none is asked for. drain_seconds: how long running requests may go
      on after the signal to end.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    api_key_env: str = "PANGU_JAX_API_KEY"
    drain_seconds: float = 30.0
    access_log: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """--mode=chat: system: message before the conversation."""

    system: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """--mode=benchmark: prompt and new tokens of each request, requests at once, repetitions."""

    prompt_tokens: int = 128
    new_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1, 16)
    repeats: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """model: 'smollm2', a .gguf file, or a Hugging Face directory. dtype: of activations; 'auto' as
    the file says. adapters: name to folder in PEFT's layout.
    """

    experiment: str = "pangu.inference"
    model: str = "smollm2"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    adapters: dict[str, str] = dataclasses.field(default_factory=dict)
    engine: EngineConfig = EngineConfig()
    sampling: SamplingParams = SamplingParams()
    generate: GenerateConfig = GenerateConfig()
    chat: ChatConfig = ChatConfig()
    serve: ServeConfig = ServeConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
