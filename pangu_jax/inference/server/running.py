"""The engine requests of one call: run side by side, watched, and cancelled together."""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from pangu_jax.inference import (
    Completion,
    Delta,
    EngineBusy,
    Request,
    RequestError,
    ServerClosed,
)
from pangu_jax.inference.chat_protocol.errors import ApiError, closing, failed
from pangu_jax.inference.interface import AsyncEngine
from pangu_jax.inference.server.limits import Admission

_log = logging.getLogger("pangu_jax.serve")
_T = TypeVar("_T")


class _Buffer:
    """A bounded queue for one reader; errors enter it however full it is."""

    def __init__(self, size: int):
        self._items: collections.deque[tuple[int, Delta] | ApiError] = collections.deque()
        self._room = asyncio.Semaphore(size)
        self._filled = asyncio.Event()

    async def put(self, item: tuple[int, Delta]) -> None:
        await self._room.acquire()
        self._items.append(item)
        self._filled.set()

    def put_now(self, error: ApiError) -> None:
        self._items.append(error)
        self._filled.set()

    async def get(self) -> tuple[int, Delta] | ApiError:
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        item = self._items.popleft()
        if not isinstance(item, ApiError):
            self._room.release()
        return item


class Running:
    """Engine requests of one call; use as an async context manager, which cancels what is left.

    A bounded queue lies between engine and client: where the client does not read, the engine's
    iterators are not read either.
    """

    def __init__(self, engine: AsyncEngine, admission: Admission, *, buffered: int):
        self._engine, self._admission = engine, admission
        self._news = _Buffer(buffered)
        self._tasks: list[asyncio.Task[Any]] = []
        self._aborted = False

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(self, *_) -> None:
        await self._cancel()

    def abort(self) -> None:
        """Cancels what runs because the server ends; readers get `closing()`."""
        self._aborted = True
        for task in self._tasks:
            task.cancel()
        self._news.put_now(closing())

    async def completions(self, requests: Sequence[Request]) -> list[Completion]:
        """All of them finished, in order.

        Raises:
          ApiError: where one of them failed; the others are cancelled.
        """
        self._tasks = [asyncio.create_task(self._complete(request)) for request in requests]
        try:
            return list(await asyncio.gather(*self._tasks))
        except asyncio.CancelledError:
            if self._aborted:
                raise closing() from None
            raise

    async def deltas(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Delta]]:
        """(which request, its news) as they come, until all have finished.

        Raises:
          ApiError: where one of them failed; leaving the context cancels the others.
        """
        self._tasks = [
            asyncio.create_task(self._pump(index, request))
            for index, request in enumerate(requests)
        ]
        unfinished = len(requests)
        while unfinished:
            news = await self._news.get()
            if isinstance(news, ApiError):
                raise news
            yield news
            unfinished -= news[1].finish_reason is not None

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _complete(self, request: Request) -> Completion:
        async with self._admission.turn():
            try:
                completion = await self._engine.complete(request)
            except Exception as error:
                raise _as_api_error(error) from error
        _check(completion)
        return completion

    async def _pump(self, index: int, request: Request) -> None:
        try:
            async with self._admission.turn():
                stream = self._engine.stream(request)
                try:
                    async for delta in stream:
                        _check(delta)
                        await self._news.put((index, delta))
                        if delta.finish_reason is not None:
                            return
                finally:
                    # Leaving the loop alone does not close the iterator, which is what cancels.
                    if hasattr(stream, "aclose"):
                        await stream.aclose()
            _log.error("%s: the engine ended the stream without a reason", request.id)
            raise failed()
        except Exception as error:
            self._news.put_now(_as_api_error(error))


async def until_gone(receive: Callable[[], Awaitable[Any]], work: Awaitable[_T]) -> _T:
    """The work's result; cancelled where the client leaves first.

    Raises:
      ClientDisconnect: the client left.
    """

    async def gone():
        while (await receive())["type"] != "http.disconnect":
            pass

    watcher, worker = asyncio.ensure_future(gone()), asyncio.ensure_future(work)
    try:
        await asyncio.wait({watcher, worker}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientDisconnect()
    finally:
        for task in (watcher, worker):
            task.cancel()
        await asyncio.gather(watcher, worker, return_exceptions=True)


def _check(news: Delta | Completion) -> None:
    if news.finish_reason == "error":
        _log.error("%s: the engine failed: %s", news.id, news.error)
        raise failed()
    if news.finish_reason == "cancelled":
        raise closing()  # nobody else cancels what is still being read


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusy):
        return ApiError(str(error), status=429, kind="rate_limit_error", code="rate_limit_exceeded")
    if isinstance(error, RequestError):
        return ApiError(str(error))
    if isinstance(error, ServerClosed):
        return closing()
    _log.error("the engine failed", exc_info=error)
    return failed()
