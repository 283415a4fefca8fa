"""SIGTERM and SIGINT as a request to stop at the next safe point."""

from __future__ import annotations

import os
import signal
import threading

import jax


class StopRequested(Exception):
    """Raised by `check_stop` when a stop signal has arrived; `fit` turns it into a clean stop."""


_received: int | None = None


def check_stop() -> None:
    """Raises StopRequested if a stop signal arrived; long evaluations call it between batches.

    It does nothing in runs over several processes, where one process must not leave a collective
    computation on its own.
    """
    if _received is not None and jax.process_count() == 1:
        raise StopRequested


class StopSignals:
    """Context in which the first SIGTERM or SIGINT only sets a flag; the second one kills.

    Outside the main thread Python cannot install handlers; the context then does nothing.
    """

    def __enter__(self) -> StopSignals:
        global _received
        _received = None
        self._previous: dict[int, object] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        global _received
        if _received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _received = number
        name = signal.Signals(number).name
        # os.write is safe inside a handler, print is not.
        os.write(
            2,
            f"\n{name} received: finishing the current step and saving "
            "(send it again to abort at once)\n".encode(),
        )

    @property
    def received(self) -> int | None:
        """Number of the signal that arrived in this process, or None."""
        return _received


def exit_code(number: int | None) -> int:
    """Shell convention for a process ended by a signal: 128 + number (143 for SIGTERM)."""
    return 128 + (number or signal.SIGTERM)
