"""Any endpoint that speaks the OpenAI protocol: vLLM, SGLang, llama.cpp's server, our own."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agents_jax.llm import background, endpoint_scoring, http_call
from agents_jax.llm.call_log import Transcript
from agents_jax.llm.capabilities import IMPLEMENTATIONS, Capabilities, who_has
from agents_jax.llm.endpoint_config import EndpointConfig, read_key
from agents_jax.llm.errors import CallError, InvalidRequest, MissingCapability
from agents_jax.llm.hashing import request_key
from agents_jax.llm.interface import BaseModel
from agents_jax.llm.ledger import Ledger
from agents_jax.llm.protocol import body_of, bound_of, choices_of, path_of, usage_of
from agents_jax.llm.requests import GenerateRequest, ScoreRequest
from agents_jax.llm.results import Attempt, Failure, Response, Scores, Usage
from agents_jax.llm.retry import Clock, SystemClock, with_retries

if TYPE_CHECKING:
    import httpx


class EndpointModel(BaseModel):
    """A model behind HTTP.

    Args:
      config: where and how. ledger: what calls cost, and the budget; None counts in memory.
      transcript: where calls are written. transport, clock, rng: for tests.

    Raises:
      InvalidRequest: the environment variable of the key is not set.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        ledger: Ledger | None = None,
        transcript: Transcript | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ):
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise InvalidRequest(
                "endpoints need the package httpx; pip install -e '.[agents]'."
            ) from error
        read_key(config.api_key_env)  # fails now rather than in the middle of a run
        own = "" if config.server == "openai" else f" (server={config.server!r})"
        super().__init__(
            config.model,
            Capabilities(IMPLEMENTATIONS[f"endpoint{own}"], config.max_context),
            # Not the address: the same model answers the same on another port.
            identity={"kind": "endpoint", "model": config.model},
            concurrency=config.concurrency,
            transcript=transcript,
        )
        self.config = config
        self.ledger = ledger if ledger is not None else Ledger()
        self._transport = transport
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._client: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient] | None = None
        self._n_ignored = False
        self.scoring = endpoint_scoring.State()

    def samples_together(self, request: GenerateRequest) -> bool:
        """Whether one call is asked for all samples: not with a seed, which each sample has of
        its own."""
        return self.config.n_per_call and request.seed is None and not self._n_ignored

    def close(self) -> None:
        """Closes connections and the ledger."""
        client, self._client = self._client, None
        if client is not None and client[0] is background.loop():
            background.run(client[1].aclose())
        self.ledger.close()
        super().close()

    def _http(self) -> httpx.AsyncClient:
        running = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not running:
            import httpx

            config = self.config
            client = httpx.AsyncClient(
                transport=self._transport,
                timeout=httpx.Timeout(config.timeout, connect=config.connect_timeout),
                limits=httpx.Limits(max_connections=config.concurrency),
                follow_redirects=False,
                headers={"User-Agent": "agents-jax", **config.headers},
            )
            self._client = (running, client)
        return self._client[1]

    async def call(
        self, path: str, body: Mapping[str, Any], bound: Usage, request: Any
    ) -> tuple[dict[str, Any], Usage, tuple[Attempt, ...]]:
        """The answer to one body, what it used, and the attempts that it took.

        Args:
          bound: most that the call can use; set aside in the budget, and booked where the endpoint
            does not say what it used.

        Raises:
          CallError: not answered within the policy's attempts, deadline and the budget.
        """
        key = read_key(self.config.api_key_env)
        facts = {
            "model": self.name,
            "tag": request.tag,
            "hash": request_key(self.identity, request.content()),
        }
        used = Usage()

        async def attempt(left: float | None) -> dict[str, Any]:
            nonlocal used
            timeout = self.config.timeout if left is None else min(self.config.timeout, left)
            reserved = await self.ledger.reserve(bound)
            booked: Usage | None = bound  # an interrupted call may have been served
            outcome = "interrupted"
            try:
                answer = await http_call.post(
                    self._http(),
                    self.config.base_url + path,
                    body,
                    key=key,
                    timeout=timeout,
                    max_body=self.config.max_body,
                )
                booked, outcome = usage_of(answer, bound), "ok"
                if isinstance(answer.get("choices"), list) and not answer["choices"]:
                    # Here, so that it is tried again.
                    raise CallError(
                        "truncated", "The endpoint answered with empty choices.", billed=True
                    )
            except CallError as error:
                outcome = error.kind
                if booked is bound and not error.billed:
                    booked = None
                raise
            finally:
                self.ledger.settle(reserved, booked, **facts, outcome=outcome)
                used += booked or Usage()
            return answer

        answer, history = await with_retries(
            attempt, self.config.retry, clock=self._clock, rng=self._rng
        )
        return answer, used, history

    async def _generate(self, part: GenerateRequest) -> Response:
        choices = []
        usage, attempts, model = Usage(), (), self.name
        while len(choices) < part.n:  # a server may give fewer than n
            rest = dataclasses.replace(
                part, sample=part.sample + len(choices), n=part.n - len(choices)
            )
            if self._n_ignored:
                rest = dataclasses.replace(rest, n=1)
            body = body_of(rest, self.config)
            bound = bound_of(rest, completion_tokens=self._most(rest) * rest.n)
            try:
                answer, used, history = await self.call(path_of(rest), body, bound, rest)
                found = choices_of(answer, rest)
            except CallError as error:
                if not choices:
                    raise
                return Response(  # what came is kept
                    choices=tuple(choices),
                    usage=usage,
                    attempts=attempts + error.history,
                    model=model,
                    error=Failure(error.kind, str(error), error.attempts),
                )
            if part.logprobs is not None and not all(c.logprobs or not c.text for c in found):
                missing = {"logprobs"}
                why = "the endpoint answered without log-probabilities"
                raise MissingCapability(self.name, missing, who_has(missing), why)
            self._n_ignored = self._n_ignored or len(found) < rest.n
            choices += found
            usage, attempts = usage + used, attempts + history
            model = str(answer.get("model") or self.name)
        return Response(choices=tuple(choices), usage=usage, attempts=attempts, model=model)

    def _most(self, request: GenerateRequest) -> int:
        if request.max_tokens is not None:
            return request.max_tokens
        if self.ledger.budget is not None:
            raise InvalidRequest(
                "max_tokens=None has no bound that a budget could set aside; give max_tokens."
            )
        return 0

    async def _score(self, part: ScoreRequest) -> Scores:
        return await endpoint_scoring.score(self, part)
