"""What one client may ask of the server: sizes, counts, waiting, and the key to get in."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import os
from collections.abc import Iterator

from starlette.requests import Request

from pangu_jax.inference.chat_protocol.errors import ApiError, ServeError, busy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the server; sizes in bytes, times in seconds.

    body_bytes: a request's body. body_seconds: until it must have come.
    choices: completions that one request may ask for (prompts times n).
    stop: stop texts of one request.
    running: completions given to the engine at once. waiting: further ones that wait for their
      turn; beyond that clients are told to try again after retry_after.
    buffered: pieces of news held for a client that reads slowly, for each request; then the engine
      is held back. A completion that fits frees the engine whatever its client does.
    write_seconds: how long a client may read nothing before its request is cancelled.
    connections: open at once.
    """

    body_bytes: int = 4 * 2**20
    body_seconds: float = 60.0
    choices: int = 128
    stop: int = 16
    running: int = 64
    waiting: int = 256
    retry_after: int = 2
    buffered: int = 1024
    write_seconds: float = 60.0
    connections: int = 512

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name in ("waiting", "stop") else 1
            if field.type == "float" and not value > 0:
                raise ServeError(f"{field.name}={value!r} is not allowed; above 0 s.")
            if field.type == "int" and value < lowest:
                raise ServeError(f"{field.name}={value!r} is not allowed; {lowest} or more.")


class Admission:
    """Counts completions: some run, a bounded number waits, the rest is turned away."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._turn = asyncio.Semaphore(limits.running)
        self.admitted = 0

    @contextlib.contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """A place for `count` completions while it is open.

        Raises:
          ApiError: 429 where too many wait, 400 where so many can never be taken.
        """
        most = self._limits.running + self._limits.waiting
        if count > most:
            raise ApiError(f"{count} completions in one request; this server takes {most} at most.")
        if self.admitted + count > most:
            raise busy(self.admitted, self._limits.retry_after)
        self.admitted += count
        try:
            yield
        finally:
            self.admitted -= count

    def turn(self) -> asyncio.Semaphore:
        """Held by a completion while the engine has it."""
        return self._turn


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
      ApiError: 413 where it is larger than allowed, 408 where it does not come in time.
    """
    too_large = ApiError(
        f"The body is larger than {limits.body_bytes} bytes, the limit of this server.",
        status=413,
        code="body_too_large",
        headers={"connection": "close"},
    )
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(
            f"The body did not come within {limits.body_seconds:g} s.",
            status=408,
            headers={"connection": "close"},
        ) from error
    return bytes(body)


def api_key_from_environment(variable: str) -> str:
    """The key that clients must show, from an environment variable.

    Raises:
      ServeError: the variable is not set or empty.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ServeError(
            f"The environment variable {variable} is not set or empty; set it to the API key that "
            "clients must send, or start the server without a key."
        )
    return key


def check_key(header: str | None, key: str) -> None:
    """Compares `Authorization: Bearer <key>` in constant time.

    Raises:
      ApiError: 401; the message does not repeat what was sent.
    """
    scheme, _, given = (header or "").partition(" ")
    missing = scheme.lower() != "bearer" or not given.strip()
    # The ASGI stack reads header bytes as Latin-1; this gives the bytes back.
    if missing or not hmac.compare_digest(given.strip().encode("latin-1"), key.encode()):
        raise ApiError(
            "The API key is missing: send it as 'Authorization: Bearer <key>'."
            if missing
            else "The API key is wrong.",
            status=401,
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
