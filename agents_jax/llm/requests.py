"""What is asked of a model.

Requests are frozen and compare by what changes the answer; `tag` and `metadata` ride along and are
no part of their hash.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from agents_jax.llm.errors import InvalidRequest
from agents_jax.llm.hashing import canonical, digest, plain

Message = Mapping[str, Any]
JSON = Any


def system(text: str) -> dict[str, str]:
    """A message by the system."""
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    """A message by the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """A message by the model."""
    return {"role": "assistant", "content": text}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Request:
    """messages or prompt: exactly one. tag, metadata: for the reader; no part of the hash."""

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    tag: str = ""
    metadata: Mapping[str, JSON] = dataclasses.field(default_factory=dict)

    kind = ""
    _ignored = ("tag", "metadata")

    def __post_init__(self):
        if (self.messages is None) == (self.prompt is None):
            raise InvalidRequest("A request needs messages or a prompt, and not both.")
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise InvalidRequest(f"prompt is a {type(self.prompt).__name__}; text is needed.")
        if self.messages is not None:
            if isinstance(self.messages, str | Mapping):
                raise InvalidRequest(
                    "messages must be a sequence of {'role', 'content'}; for one text write "
                    "prompt=... or messages=[user(...)]."
                )
            self._set("messages", tuple(plain(m, "messages") for m in self.messages))
            if not self.messages:
                raise InvalidRequest("messages is empty; at least one message is needed.")
            for index, message in enumerate(self.messages):
                if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                    raise InvalidRequest(
                        f"messages[{index}]={message!r} has no role; a message is a mapping with "
                        "'role' (system, user, assistant or tool) and 'content'."
                    )
        self._set("metadata", plain(self.metadata, "metadata"))

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    def content(self) -> dict[str, JSON]:
        """All that changes the answer, as plain JSON; fields at their default are left out.

        So a field that is added later, with a default that changes nothing, keeps old hashes.
        """
        found: dict[str, JSON] = {"kind": self.kind}
        for field in dataclasses.fields(self):
            if field.name in self._ignored:
                continue
            value = getattr(self, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if value != default:
                found[field.name] = plain(value, field.name)
        return found

    def __eq__(self, other):
        return type(self) is type(other) and canonical(self.content()) == canonical(other.content())

    def __hash__(self):
        return int(digest(self.content())[:15], 16)

    def needs(self) -> set[str]:
        """Names of the capabilities that a model must have."""
        return {"chat" if self.messages is not None else "prompt"}


def _number(request, name, low, high, *, open_low=False):
    value = getattr(request, name)
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not (low < value if open_low else low <= value) or value > high:
        start = f"above {low}" if open_low else f"from {low}"
        raise InvalidRequest(f"{name}={value!r} is not allowed; a number {start} to {high}.")
    request._set(name, float(value))


def _integer(request, name, low, *, none=True):
    value = getattr(request, name)
    if value is None and none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        also = ", or None" if none else ""
        raise InvalidRequest(f"{name}={value!r} is not allowed; an integer >= {low}{also}.")


def _adapters(given) -> tuple[tuple[str, float], ...]:
    pairs = given.items() if isinstance(given, Mapping) else given
    adapters = tuple(sorted((str(name), float(weight)) for name, weight in pairs))
    if len({name for name, _ in adapters}) < len(adapters):
        raise InvalidRequest(f"adapters={adapters!r} names an adapter twice.")
    return adapters


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GenerateRequest(_Request):
    """Texts to be written.

    n, sample: samples number `sample`, ..., `sample + n - 1` of this request. n is no part of the
      hash, `sample` is, so that a recording of 4 samples is a part of one of 8.
    max_tokens: new tokens at most; None for what the model allows.
    temperature: 0 takes the likeliest token. top_p, top_k, min_p, penalties: as in
      `pangu_jax.inference.SamplingParams`. stop: texts that end the answer and are no part of it.
    seed: sample number 0 has this seed, others seeds derived from it; None: the model's choice.
    logprobs: None for none; k >= 0 for those of each token and of the k likeliest in its place.
    tools, tool_choice: definitions of functions and 'auto', 'none', 'required' or a mapping, as in
      the OpenAI protocol. response_schema: JSON schema, regex: pattern, that the answer must match.
    adapters: weights of named LoRA adapters. extra: further fields for an endpoint's body.
    """

    n: int = 1
    sample: int = 0
    max_tokens: int | None = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    tools: tuple[Mapping[str, JSON], ...] = ()
    tool_choice: str | Mapping[str, JSON] | None = None
    response_schema: Mapping[str, JSON] | None = None
    regex: str | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    extra: Mapping[str, JSON] = dataclasses.field(default_factory=dict)

    kind = "generate"
    _ignored = ("tag", "metadata", "n")

    def __post_init__(self):
        super().__post_init__()
        _integer(self, "n", 1, none=False)
        _integer(self, "sample", 0, none=False)
        _integer(self, "max_tokens", 1)
        _number(self, "temperature", 0, 100)
        _number(self, "top_p", 0, 1, open_low=True)
        _integer(self, "top_k", 0, none=False)
        _number(self, "min_p", 0, 1)
        _number(self, "repetition_penalty", 0, 100, open_low=True)
        _number(self, "presence_penalty", -100, 100)
        _number(self, "frequency_penalty", -100, 100)
        _integer(self, "seed", 0)
        _integer(self, "logprobs", 0)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise InvalidRequest(f"stop={self.stop!r}: texts of at least one character are needed.")
        self._set("stop", stop)
        self._set("tools", tuple(plain(tool, "tools") for tool in self.tools))
        self._set("tool_choice", plain(self.tool_choice, "tool_choice"))
        self._set("response_schema", plain(self.response_schema, "response_schema"))
        self._set("extra", plain(self.extra, "extra"))
        self._set("adapters", _adapters(self.adapters))
        if self.response_schema is not None and self.regex is not None:
            raise InvalidRequest("response_schema and regex exclude each other; give one.")
        if self.tools and self.messages is None:
            raise InvalidRequest("tools need messages; a plain prompt has no place for them.")

    @classmethod
    def ask(cls, text: str, *, system_text: str | None = None, **settings: Any) -> GenerateRequest:
        """A chat of one question, below a system message where one is given."""
        first = [] if system_text is None else [system(system_text)]
        return cls(messages=(*first, user(text)), **settings)

    def needs(self) -> set[str]:
        """Names of the capabilities that a model must have."""
        asked = {
            "logprobs": self.logprobs is not None,
            "json_schema": self.response_schema is not None,
            "regex": self.regex is not None,
            "tools": bool(self.tools),
            "seed": self.seed is not None,
            "top_k": self.top_k > 0,
            "min_p": self.min_p > 0,
            "repetition_penalty": self.repetition_penalty != 1,
            "penalties": self.presence_penalty != 0 or self.frequency_penalty != 0,
            "adapters": bool(self.adapters),
        }
        return {"generate", *super().needs(), *(name for name, true in asked.items() if true)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRequest(_Request):
    """Continuations whose log-probability after the prompt (or chat) is wanted.

    After a chat, a continuation is the beginning of the assistant's turn.
    """

    continuations: tuple[str, ...] = ()
    adapters: tuple[tuple[str, float], ...] = ()

    kind = "score"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.continuations, str):
            raise InvalidRequest("continuations is one text; a sequence of texts is needed.")
        self._set("continuations", tuple(self.continuations))
        if not self.continuations:
            raise InvalidRequest("continuations is empty; at least one is needed.")
        for index, text in enumerate(self.continuations):
            if not isinstance(text, str) or not text:
                raise InvalidRequest(
                    f"continuations[{index}]={text!r}: a text of at least one character is needed."
                )
        self._set("adapters", _adapters(self.adapters))

    def needs(self) -> set[str]:
        """Names of the capabilities that a model must have."""
        return {"score", *super().needs(), *(["adapters"] if self.adapters else [])}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HiddenStatesRequest(_Request):
    """Hidden states wanted.

    continuation: text appended to the prompt or to the opened assistant's turn; may be empty.
    layers: l >= 0 after l blocks (0: the embeddings); negative ones count from the last block.
    positions: of tokens of prompt and continuation together, negative ones from the end; or
      'continuation' for all tokens of the continuation.
    normed: pass the stream after the last block through the final norm, as `transformers` does.
    """

    continuation: str = ""
    layers: tuple[int, ...] = (-1,)
    positions: tuple[int, ...] | Literal["continuation"] = (-1,)
    normed: bool = False
    adapters: tuple[tuple[str, float], ...] = ()

    kind = "hidden_states"

    def __post_init__(self):
        super().__post_init__()
        self._set("layers", tuple(int(layer) for layer in self.layers))
        if self.positions != "continuation":
            if isinstance(self.positions, str):
                raise InvalidRequest(
                    f"positions={self.positions!r}; allowed: integers, or 'continuation'."
                )
            self._set("positions", tuple(int(position) for position in self.positions))
        elif not self.continuation:
            raise InvalidRequest("positions='continuation' needs a continuation.")
        if not self.layers or not self.positions:
            raise InvalidRequest("layers and positions must each name at least one.")
        self._set("adapters", _adapters(self.adapters))

    def needs(self) -> set[str]:
        """Names of the capabilities that a model must have."""
        return {"hidden_states", *super().needs(), *(["adapters"] if self.adapters else [])}
