"""Settings of an OpenAI-compatible endpoint. No secret is among them."""

from __future__ import annotations

import dataclasses
import os
import urllib.parse
from collections.abc import Mapping
from typing import Literal

from agents_jax.llm.errors import InvalidRequest
from agents_jax.llm.retry import RetryPolicy

Server = Literal["openai", "vllm", "sglang", "llama.cpp", "pangu"]
SERVERS = ("openai", "vllm", "sglang", "llama.cpp", "pangu")
SCORING = ("auto", "echo", "top_logprobs")
_MIB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Where an endpoint is and how it is treated.

    base_url: up to and with '/v1'. model: as the endpoint names it.
    api_key_env: name of the environment variable that holds the key; None where none is needed.
    server: which program answers; decides on fields beyond the OpenAI protocol.
    concurrency: calls under way at once. timeout: seconds of one try, from connecting to the last
      byte. connect_timeout: seconds.
    stream: have answers sent piece by piece and put together here; keeps proxies from closing
      long calls.
    n_per_call: ask several samples in one call ('n') where no seed is given.
    max_body: bytes of an answer that are read at most.
    scoring: 'echo' (log-probabilities of a repeated prompt), 'top_logprobs' (single-token choices
      out of the likeliest first tokens), or 'auto', which tries them in this order.
    score_bound: give a choice that is not among the likeliest tokens the lowest reported
      log-probability, marked as a bound, instead of an error.
    max_tokens_field: 'max_tokens', or 'max_completion_tokens' for endpoints that want that name.
    max_context: tokens, where known. headers: further ones; none that carry a secret.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    server: Server = "openai"
    concurrency: int = 8
    timeout: float = 120.0
    connect_timeout: float = 10.0
    retry: RetryPolicy = RetryPolicy()
    stream: bool = False
    n_per_call: bool = True
    max_body: int = 64 * _MIB
    scoring: Literal["auto", "echo", "top_logprobs"] = "auto"
    score_bound: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    max_context: int | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        url = urllib.parse.urlsplit(self.base_url)
        # A URL may itself hold a secret, so that it is not repeated where it looks like one.
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise InvalidRequest(
                "base_url holds a user, a password, a query or a fragment; keys belong into the "
                "environment (api_key_env)."
            )
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InvalidRequest(
                f"base_url={self.base_url!r} is no address; write http://host:port/v1."
            )
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        if not self.model:
            raise InvalidRequest("model is empty; give the name that the endpoint uses.")
        for name, allowed in (
            ("server", SERVERS),
            ("scoring", SCORING),
            ("max_tokens_field", ("max_tokens", "max_completion_tokens")),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidRequest(
                    f"{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}."
                )
        for name in ("timeout", "connect_timeout", "max_body", "concurrency"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidRequest(f"{name}={getattr(self, name)!r}: a number > 0 is needed.")
        secret = [h for h in self.headers if h.lower() in ("authorization", "api-key", "x-api-key")]
        if secret:
            raise InvalidRequest(
                f"headers holds {secret[0]!r}; keys belong into the environment (api_key_env)."
            )


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable; None where none is needed.

    Raises:
      InvalidRequest: the variable is unset, or holds what cannot be sent; its value is not told.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InvalidRequest(
            f"the environment variable {variable!r} (api_key_env) is not set; put the endpoint's "
            "key there, or leave api_key_env out where none is needed."
        )
    # Checked here because the HTTP library would quote the header in its error.
    if not all("!" <= character <= "~" for character in key):
        raise InvalidRequest(
            f"the environment variable {variable!r} holds spaces or characters outside ASCII; "
            "a key has none."
        )
    return key
