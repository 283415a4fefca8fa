"""Routes of the server as an ASGI application (Starlette)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pangu_jax.inference.chat_protocol.errors import ApiError, ServeError, closing, failed
from pangu_jax.inference.chat_protocol.fields import load_json
from pangu_jax.inference.chat_protocol.tokens import TokenTexts
from pangu_jax.inference.interface import AsyncEngine
from pangu_jax.inference.server import chunks, replies, sse
from pangu_jax.inference.server.limits import Admission, Limits, check_key, read_body
from pangu_jax.inference.server.protocol import (
    Call,
    Served,
    read_chat,
    read_completion,
    unknown_model,
)
from pangu_jax.inference.server.running import Running, until_gone
from pangu_jax.weights.tokenizer_import import LoadedTokenizer

_log = logging.getLogger("pangu_jax.serve")


class Server:
    """The application and what its end needs to know: `app` for an ASGI server.

    Args:
      engine: serves the requests. loaded: its tokenizer, with a chat template for chats.
      api_key: what clients must show for everything but /health; None for an open server.
      adapters: names of LoRA adapters that the engine knows; each may be asked for as a model.

    Raises:
      ServeError: adapter names that repeat or are the model's.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        loaded: LoadedTokenizer,
        *,
        api_key: str | None = None,
        adapters: Collection[str] = (),
        limits: Limits | None = None,
    ):
        names = [engine.model_name, *adapters]
        for name in names:
            if names.count(name) > 1:
                raise ServeError(f"two models are named {name!r}; names of adapters must differ.")
        self.engine, self.limits = engine, limits or Limits()
        self.served = Served(
            model=engine.model_name,
            context_length=engine.context_length,
            loaded=loaded,
            texts=TokenTexts(loaded),
            adapters=tuple(adapters),
            limits=self.limits,
            created=int(time.time()),
        )
        self.closing = False
        self._running: set[Running] = set()
        self._admission = Admission(self.limits)
        self.app = _Door(self._routes(), api_key)

    def abort(self) -> None:
        """Ends what still runs, each with an error that says so."""
        for running in list(self._running):
            running.abort()

    async def idle(self) -> None:
        """Returns once no completion is running."""
        while self._running:
            await asyncio.sleep(0.02)

    def _routes(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completion, methods=["POST"]),
            ],
            exception_handlers={
                ApiError: _answer_error,
                HTTPException: _answer_http,
                ClientDisconnect: _answer_nobody,
                Exception: _answer_failure,
            },
        )

    async def _health(self, _: Request) -> Response:
        if self.closing:
            return _json({"status": "closing"}, 503)
        return _json({"status": "ok"})

    async def _models(self, _: Request) -> Response:
        names = (self.served.model, *self.served.adapters)
        return _json({"object": "list", "data": [self._describe(name) for name in names]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.served.model and name not in self.served.adapters:
            raise unknown_model(name, self.served)
        return _json(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.served.created,
            "owned_by": "pangu_jax",
            "parent": None if name == self.served.model else self.served.model,
            "context_length": self.served.context_length,
        }

    async def _chat(self, request: Request) -> Response:
        return await self._serve(request, read_chat, replies.chat_reply, chunks.ChatChunks)

    async def _completion(self, request: Request) -> Response:
        return await self._serve(
            request, read_completion, replies.completion_reply, chunks.CompletionChunks
        )

    async def _serve(self, request: Request, read, reply, chunked) -> Response:
        if self.closing:
            raise closing()
        body = await read_body(request, self.limits)
        # Tokenising a long prompt takes long; others are served meanwhile.
        call: Call = await asyncio.to_thread(lambda: read(load_json(body), self.served))
        if call.stream:
            return await self._stream(request, call, chunked(call, self.served))
        async with self._admitted(call) as running:
            work = running.completions(call.requests)
            completions = await until_gone(request.receive, work)
            return _json(reply(call, self.served, completions))

    @contextlib.asynccontextmanager
    async def _admitted(self, call: Call) -> AsyncIterator[Running]:
        with self._admission.admit(len(call.requests)):
            buffered = self.limits.buffered
            async with Running(self.engine, self._admission, buffered=buffered) as running:
                self._running.add(running)
                try:
                    yield running
                finally:
                    self._running.discard(running)

    async def _stream(self, request: Request, call: Call, shaped: chunks.Chunks) -> Response:
        """Waits for the first news, so that what goes wrong before has its proper status."""
        async with contextlib.AsyncExitStack() as stack:
            running = await stack.enter_async_context(self._admitted(call))
            news = running.deltas(call.requests)
            first = await until_gone(request.receive, anext(news))
            return _EventStream(first, news, shaped, stack.pop_all(), self.limits.write_seconds)


class _EventStream(Response):
    """Server-sent events at the pace of the client; owns the running requests."""

    def __init__(self, first, news, shaped: chunks.Chunks, stack, write_seconds: float):
        super().__init__(headers=sse.HEADERS)
        del self.headers["content-length"]
        self._first, self._news, self._shaped = first, news, shaped
        self._stack, self._write_seconds = stack, write_seconds

    async def __call__(self, scope, receive, send) -> None:
        async with self._stack:
            try:
                await until_gone(receive, self._send_all(send))
            except TimeoutError:
                _log.warning(
                    "%s: cancelled, the client read nothing for %g s",
                    scope["path"],
                    self._write_seconds,
                )
            except ClientDisconnect:
                pass

    async def _send_all(self, send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            # Waits where the client does not read and the connection's buffer is full.
            async with asyncio.timeout(self._write_seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await write(self._events(*self._first))
            async for index, delta in self._news:
                events = self._events(index, delta)
                if events:
                    await write(events)
            last = b"".join(map(sse.event, self._shaped.last()))
        except ApiError as error:
            last = sse.event(error.body())
        except (TimeoutError, OSError):
            raise
        except Exception:
            _log.exception("a reply could not be written")
            last = sse.event(failed().body())
        await write(last + sse.DONE, more=False)

    def _events(self, index, delta) -> bytes:
        return b"".join(map(sse.event, self._shaped.take(index, delta)))


class _Door:
    """Before the routes: the key, the log of accesses, and a last net for mistakes of ours."""

    def __init__(self, app: Callable[..., Any], api_key: str | None):
        self._app, self._api_key = app, api_key

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        status, began, start = 0, False, time.perf_counter()

        async def watched(message):
            nonlocal status, began
            if message["type"] == "http.response.start":
                status, began = message["status"], True
            await send(message)

        try:
            if self._api_key is not None and scope["path"] != "/health":
                check_key(Headers(scope=scope).get("authorization"), self._api_key)
            await self._app(scope, receive, watched)
        except Exception as error:
            if not isinstance(error, ApiError):
                _log.exception("a request broke the server's code")
                error = failed("The server")
            if not began:
                await _error_response(error)(scope, receive, watched)
        finally:
            # Neither bodies nor headers nor query strings, which may hold what is secret.
            client = (scope.get("client") or ("-",))[0]
            _log.info(
                "%s %s %s %d %.3fs",
                client,
                scope["method"],
                quote(scope["path"])[:200],
                status,
                time.perf_counter() - start,
            )


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(sse.dump_json(value), status, headers, media_type="application/json")


def _error_response(error: ApiError) -> Response:
    return _json(error.body(), error.status, error.headers)


async def _answer_error(_: Request, error: Exception) -> Response:
    return _error_response(error)


async def _answer_http(request: Request, error: Exception) -> Response:
    path, method = request.url.path, request.method
    message = (
        f"{method} is not allowed for {path}."
        if error.status_code == 405
        else f"There is no {path}; see /v1/models, /v1/chat/completions and /v1/completions."
    )
    headers = dict(error.headers or {})
    return _error_response(ApiError(message, status=error.status_code, headers=headers))


async def _answer_failure(_: Request, error: Exception) -> Response:
    return _error_response(failed("The server"))  # the error goes on to the door, which logs it


async def _answer_nobody(_: Request, error: Exception) -> Response:
    return Response(status_code=408)  # the client is gone; this only ends the cycle
