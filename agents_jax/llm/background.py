"""One event loop in a thread of its own, so that plain functions work inside running loops too.

All asynchronous work of this package runs on it; connections are thus kept between calls, whoever
calls, and a notebook's own loop is no obstacle.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def _forget() -> None:
    """A forked child has the loop without its thread; it starts one of its own."""
    global _loop, _thread, _lock
    _loop, _thread, _lock = None, None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def loop() -> asyncio.AbstractEventLoop:
    """The background loop, started at the first call."""
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="agents-llm", daemon=True)
            _thread.start()
        return _loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, waited for here while it runs on the background loop.

    Raises:
      RuntimeError: called on the background thread itself (from a callback), where it would wait
        for itself.
    """
    own = loop()
    if threading.current_thread() is _thread:
        work.close()
        raise RuntimeError(
            "generate() and score() were called inside a callback of a model; there, await "
            "agenerate() and ascore() instead."
        )
    future = asyncio.run_coroutine_threadsafe(work, own)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # an interrupt here must not leave calls running there
        raise


async def hand_over(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, run on the background loop, awaited from any loop."""
    own = loop()
    if asyncio.get_running_loop() is own:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, own))
