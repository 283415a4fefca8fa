"""What a model can do, what a request needs, and who else has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from agents_jax.llm.errors import InvalidRequest, MissingCapability

CAPABILITIES: Mapping[str, str] = {
    "generate": "continue a prompt or answer a chat",
    "prompt": "take a prompt as plain text",
    "chat": "take messages",
    "score": "log-probability of given continuations",
    "hidden_states": "hidden states at layers and positions",
    "logprobs": "log-probabilities of generated tokens",
    "json_schema": "answers that match a JSON schema",
    "regex": "answers that match a regular expression",
    "tools": "tool definitions in, tool calls out",
    "seed": "the same seed gives the same samples",
    "top_k": "sample from the k likeliest tokens",
    "min_p": "sample above a fraction of the likeliest token",
    "repetition_penalty": "divide the logits of tokens already seen",
    "penalties": "presence and frequency penalties",
    "adapters": "weights of named LoRA adapters per request",
}

_OPENAI = frozenset("generate prompt chat score logprobs json_schema tools seed penalties".split())
_SAMPLERS = frozenset("top_k min_p repetition_penalty".split())
# Which implementation has what. 'score' of an endpoint is found out at the first request.
IMPLEMENTATIONS: Mapping[str, frozenset[str]] = {
    "local": frozenset(CAPABILITIES),
    "endpoint": _OPENAI,
    "endpoint (server='vllm')": _OPENAI | _SAMPLERS | {"regex"},
    "endpoint (server='sglang')": _OPENAI | _SAMPLERS | {"regex"},
    "endpoint (server='llama.cpp')": _OPENAI | _SAMPLERS,
    "endpoint (server='pangu')": _OPENAI | _SAMPLERS | {"regex", "adapters"},
    "scripted": frozenset(CAPABILITIES),
}


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """Names out of CAPABILITIES, and the longest context in tokens (None: not known)."""

    names: frozenset[str]
    max_context: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "names", frozenset(self.names))
        unknown = self.names - CAPABILITIES.keys()
        if unknown:
            raise InvalidRequest(
                f"capabilities {sorted(unknown)} are unknown; known: {', '.join(CAPABILITIES)}."
            )

    def __contains__(self, name: str) -> bool:
        if name not in CAPABILITIES:
            raise InvalidRequest(
                f"capability {name!r} is unknown; known: {', '.join(CAPABILITIES)}."
            )
        return name in self.names

    def without(self, *names: str) -> Capabilities:
        """The same, less `names`."""
        return dataclasses.replace(self, names=self.names - set(names))


def who_has(missing: Iterable[str]) -> str:
    """A sentence that says which implementations have all of `missing`."""
    wanted = set(missing)
    able = [name for name, has in IMPLEMENTATIONS.items() if wanted <= has]
    if not able:
        return "No implementation has all of these."
    return f"Implementations that have it: {', '.join(able)}."


def require(model: str, capabilities: Capabilities, needed: Iterable[str], why: str = "") -> None:
    """Refuses what `capabilities` lack.

    Raises:
      MissingCapability: names the model, what it lacks and which implementations have it.
    """
    missing = set(needed) - capabilities.names
    if missing:
        raise MissingCapability(model, missing, who_has(missing), why)
