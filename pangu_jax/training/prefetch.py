"""Host batches from a background thread, each with the iterator state just after it."""

from __future__ import annotations

import queue
import threading
from typing import Any, NamedTuple


class Fetched(NamedTuple):
    """One host batch. state: what to restore so that the next batch is the one after it."""

    batch: Any
    state: Any


class Prefetcher:
    """Iterates over `iterator` ahead of the caller.

    The iterator state is taken in the same thread right after each `next`, so it belongs to the
    batch it comes with however far ahead the thread is.

    Args:
      iterator: has `__next__`, and `get_state` if its place is to be saved.
      depth: batches to hold ready.
    """

    def __init__(self, iterator, depth: int = 2):
        self._iterator = iterator
        self._queue: queue.Queue = queue.Queue(maxsize=max(depth, 1))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def next(self) -> Fetched:
        """The next batch; raises StopIteration at the end, or what the data pipeline raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # asked again, it says the same again
            raise item
        return item

    def close(self) -> None:
        """Stops the thread; waits for it briefly."""
        self._stop.set()
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            pass
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                batch = next(self._iterator)
                self._put(Fetched(batch, iterator_state(self._iterator)))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            self._put(error)

    def _put(self, item) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


def iterator_state(iterator: Any) -> Any:
    """The iterator's place (JSON-ready or bytes), or None if it cannot say."""
    return iterator.get_state() if hasattr(iterator, "get_state") else None
