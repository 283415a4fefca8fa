"""What servers and agents may ask of an engine, whatever runs behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from pangu_jax.inference.request import Completion, Delta, Request


class AsyncEngine(Protocol):
    """Requests join and leave a running batch; safe to use from one event loop."""

    model_name: str
    context_length: int

    def stream(self, request: Request) -> AsyncIterator[Delta]:
        """News of the request until its finish_reason; closing the iterator cancels it.

        Raises:
          RequestError: before the first news, where the request cannot be served.
          ServerClosed: the engine is shutting down.
        """
        ...

    async def complete(self, request: Request) -> Completion:
        """The finished request; cancelling the task cancels it."""
        ...

    async def close(self, *, drain_seconds: float = 0.0) -> None:
        """Takes no more requests, lets running ones finish for so long, cancels the rest."""
        ...
