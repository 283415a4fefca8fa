"""An engine in a thread of its own, for servers: requests from one event loop, news back to it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator

from pangu_jax.inference.engine import Engine
from pangu_jax.inference.errors import ServerClosed
from pangu_jax.inference.request import Completion, Delta, Request

_IDLE_SECONDS = 0.5  # how often an idle thread looks whether it should end


class EngineThread:
    """Implements `pangu_jax.inference.interface.AsyncEngine` over an `Engine`.

    The thread owns the engine: nothing else may call it until `close` has returned.
    """

    def __init__(self, engine: Engine):
        self.model_name = engine.model_name
        self.context_length = engine.context_length
        self.adapter_names = engine.adapter_names
        self.statistics = engine.statistics
        self._engine = engine
        self._orders: queue.SimpleQueue = queue.SimpleQueue()
        self._listeners: dict[str, _Listener] = {}
        self._closing = False
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ for the event loop

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        """News of the request until its finish_reason; closing the iterator cancels it.

        Raises:
          RequestError: it cannot be served. ServerClosed: `close` was called.
        """
        listener = await self._submit(request)
        finished = False
        try:
            while not finished:
                delta = await listener.news.get()
                finished = delta.finish_reason is not None
                yield delta
        finally:
            if not finished:
                self._orders.put(("cancel", request.id))

    async def complete(self, request: Request) -> Completion:
        """The finished request; cancelling the task cancels it. Raises as `stream`."""
        listener = await self._submit(request)
        try:
            return await listener.completion
        except asyncio.CancelledError:
            self._orders.put(("cancel", request.id))
            raise

    async def close(self, *, drain_seconds: float = 0.0) -> None:
        """Takes no more requests, lets running ones finish for so long, cancels the rest."""
        self._closing = True
        self._orders.put(("close", time.monotonic() + drain_seconds))
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def _submit(self, request: Request) -> _Listener:
        if self._closing or not self._thread.is_alive():
            raise ServerClosed("The engine is shutting down and takes no more requests.")
        listener = _Listener(asyncio.get_running_loop())
        self._orders.put(("add", (request, listener)))
        try:
            await listener.accepted
        except asyncio.CancelledError:
            self._orders.put(("cancel", request.id))
            raise
        return listener

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while True:
                self._obey()
                if self._deadline is not None and (
                    self._engine.idle or time.monotonic() >= self._deadline
                ):
                    break
                if not self._engine.idle:
                    for delta in self._engine.step():
                        self._tell(delta)
        except BaseException as error:
            self._closing = True
            for name in list(self._listeners):
                self._tell(Delta(id=name, finish_reason="error", error=f"engine failed: {error}"))
            raise
        finally:
            self._closing = True
            for name in list(self._listeners):
                delta = self._engine.cancel(name)
                self._tell(delta or Delta(id=name, finish_reason="cancelled"))
            self._refuse_rest()

    def _obey(self) -> None:
        """Takes in every order that is there; waits for one where there is nothing to do."""
        wait = self._engine.idle and self._deadline is None
        while True:
            try:
                order, argument = self._orders.get(block=wait, timeout=_IDLE_SECONDS)
            except queue.Empty:
                return
            wait = False
            if order == "add":
                self._add(*argument)
            elif order == "cancel":
                delta = self._engine.cancel(argument)
                if delta is not None:
                    self._tell(delta)
            else:
                self._engine.close()
                earlier = self._deadline
                self._deadline = argument if earlier is None else min(earlier, argument)

    def _add(self, request: Request, listener: _Listener) -> None:
        try:
            self._engine.add(request)
        except Exception as error:  # of this request, not of the engine
            listener.refuse(error)
        else:
            self._listeners[request.id] = listener
            listener.accept()

    def _tell(self, delta: Delta) -> None:
        listener = self._listeners.get(delta.id)
        if listener is None:
            return
        completion = None
        if delta.finish_reason is not None:
            del self._listeners[delta.id]
            with contextlib.suppress(KeyError):
                completion = self._engine.take(delta.id)
        listener.tell(delta, completion)

    def _refuse_rest(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                order, argument = self._orders.get_nowait()
                if order == "add":
                    argument[1].refuse(ServerClosed("The engine has shut down."))


class _Listener:
    """Where news of one request go: a queue and two futures of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.completion: asyncio.Future[Completion] = loop.create_future()
        self.news: asyncio.Queue[Delta] = asyncio.Queue()

    def accept(self) -> None:
        self._call(_resolve, self.accepted, None)

    def refuse(self, error: Exception) -> None:
        self._call(_reject, self.accepted, error)

    def tell(self, delta: Delta, completion: Completion | None) -> None:
        self._call(self.news.put_nowait, delta)
        if completion is not None:
            self._call(_resolve, self.completion, completion)
        elif delta.finish_reason is not None:
            error = ServerClosed(delta.error or "The engine ended before the request did.")
            self._call(_reject, self.completion, error)

    def _call(self, function, *arguments) -> None:
        # The loop may be closed where a client's program has ended.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


def _resolve(future: asyncio.Future, value) -> None:
    if not future.done():
        future.set_result(value)


def _reject(future: asyncio.Future, error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever stream()s never looks at it
