"""The server as a process: its socket, its signals, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Collection

import uvicorn

from pangu_jax.inference.chat_protocol.errors import ServeError
from pangu_jax.inference.interface import AsyncEngine
from pangu_jax.inference.server.app import Server
from pangu_jax.inference.server.limits import Limits
from pangu_jax.weights.tokenizer_import import LoadedTokenizer

_log = logging.getLogger("pangu_jax.serve")
# After the engine has been closed: for last chunks to leave, and for tasks to end.
_FAREWELL_SECONDS = 2.0


class Stop:
    """Asks a running server to end: once to drain, twice to end at once."""

    def __init__(self):
        self.asked, self.hurried = asyncio.Event(), asyncio.Event()

    def __call__(self) -> None:
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()


def serve(
    engine: AsyncEngine,
    tokenizer: LoadedTokenizer,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    adapters: Collection[str] = (),
    limits: Limits | None = None,
    drain_seconds: float = 30.0,
    access_log: bool = True,
) -> None:
    """Serves the OpenAI protocol until SIGINT or SIGTERM; prints one line with the URL when ready.

    The first signal stops accepting, lets running requests finish for `drain_seconds`, then ends
    the rest with an error that says so, and returns; a second one does not wait. The engine is
    closed at the end. To be called in the main thread.

    Args:
      port: 0 takes a free one. api_key: see `api_key_from_environment`. access_log:
        one line on stderr for each request, without bodies and keys. Others as in `Server`.

    Raises:
      ServeError: an address that cannot be had, or settings that do not fit.
    """

    async def main():
        stop, loop = Stop(), asyncio.get_running_loop()
        old = [signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop)) for number in both]
        try:
            await serve_async(
                engine,
                tokenizer,
                host=host,
                port=port,
                api_key=api_key,
                adapters=adapters,
                limits=limits,
                drain_seconds=drain_seconds,
                stop=stop,
                on_ready=lambda url: print(f"Serving {engine.model_name} at {url}", flush=True),
            )
        except ServeError:
            await engine.close()
            raise
        finally:
            for number, handler in zip(both, old, strict=True):
                signal.signal(number, handler)

    both = (signal.SIGINT, signal.SIGTERM)
    with _logged(access_log):
        asyncio.run(main())


async def serve_async(
    engine: AsyncEngine,
    tokenizer: LoadedTokenizer,
    *,
    stop: Stop,
    on_ready: Callable[[str], None],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    adapters: Collection[str] = (),
    limits: Limits | None = None,
    drain_seconds: float = 30.0,
) -> None:
    """Serves until `stop` is called; arguments and errors as `serve`.

    on_ready: called once with the URL that ends in /v1, when requests are taken.
    """
    if not 0 <= drain_seconds < float("inf"):
        raise ServeError(f"drain_seconds={drain_seconds!r} is not allowed; 0 or more seconds.")
    if api_key is not None and not api_key.strip():
        raise ServeError("api_key is empty; give a key, or None for an open server.")
    limits = limits or Limits()
    server = Server(engine, tokenizer, api_key=api_key, adapters=adapters, limits=limits)
    listener = _listen(host, port, limits)
    url = _url(host, listener)
    if api_key is None and not _is_local(host):
        _log.warning("%s is open to the network without an API key", url)
    web = _Uvicorn(
        uvicorn.Config(
            server.app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(drain_seconds + 2 * _FAREWELL_SECONDS + 1),
        ),
        lambda: on_ready(url),
    )
    serving = asyncio.create_task(web.serve(sockets=[listener]))
    asked = asyncio.create_task(stop.asked.wait())
    try:
        await asyncio.wait({serving, asked}, return_when=asyncio.FIRST_COMPLETED)
        server.closing = True
        web.should_exit = True
        await _drain(server, engine, stop, drain_seconds)
        await serving
    finally:
        listener.close()
        for task in (serving, asked):
            task.cancel()
        await asyncio.gather(serving, asked, return_exceptions=True)


async def _drain(server: Server, engine: AsyncEngine, stop: Stop, seconds: float) -> None:
    """Closes the engine, at once where `stop` is called again, then ends what did not finish."""
    close = asyncio.create_task(engine.close(drain_seconds=seconds))
    hurried = asyncio.create_task(stop.hurried.wait())
    await asyncio.wait(
        {close, hurried},
        timeout=seconds + _FAREWELL_SECONDS,
        return_when=asyncio.FIRST_COMPLETED,
    )
    hurried.cancel()
    if not close.done():
        server.abort()
        close.cancel()
        await asyncio.wait({close})
        close = asyncio.create_task(engine.close())
        await asyncio.wait({close}, timeout=_FAREWELL_SECONDS)
    if close.done() and not close.cancelled() and close.exception() is not None:
        _log.error("the engine failed to close", exc_info=close.exception())
    # What the engine ended is on its way to the clients; those that do not read get no more time.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_SECONDS):
            await server.idle()
    server.abort()


@contextlib.contextmanager
def _logged(accesses: bool):
    """The server's own log on stderr while it runs, whatever else is set up."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = _log.level, _log.propagate
    _log.addHandler(handler)
    _log.setLevel(logging.INFO if accesses else logging.WARNING)
    _log.propagate = False
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.level, _log.propagate = before


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]):
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self):
        # Signals are ours: uvicorn would end the process by the signal it caught.
        yield


def _listen(host: str, port: int, limits: Limits) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ServeError(f"port {port} is not allowed; 0 (a free one) to 65535.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, address = found[0][0], found[0][4]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ServeError(
            f"Cannot listen on host {host!r}, port {port}: {error}. Choose another host or port; "
            "port 0 takes a free one."
        ) from error
    # Accepted connections inherit these. What waits in the kernel for a client that does not read
    # is bounded, and a connection whose peer takes nothing is dropped, though it still answers.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
    if sys.platform == "linux":
        milliseconds = int(limits.write_seconds * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/v1"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
