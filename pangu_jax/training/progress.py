"""What a run shows while it works: throughput, a progress bar or plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


class Throughput:
    """Rates over the time spent training; compilation, evaluation and saving are left out.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._since: float | None = None
        self.reset()

    def reset(self) -> None:
        """Starts a new window."""
        self._seconds = 0.0
        self._counts: dict[str, float] = {}
        if self._since is not None:
            self._since = self._clock()

    def start(self) -> None:
        """The clock runs from here."""
        if self._since is None:
            self._since = self._clock()

    def stop(self) -> None:
        """The clock stands until `start`."""
        if self._since is not None:
            self._seconds += self._clock() - self._since
            self._since = None

    def add(self, counts: dict[str, float]) -> None:
        """Adds work done while the clock ran, e.g. {'steps': 1, 'examples': 128}."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + float(count)

    def rates(self) -> dict[str, float]:
        """{'steps_per_second': ..., 'examples_per_second': ...} of the window so far."""
        seconds = self._seconds
        if self._since is not None:
            seconds += self._clock() - self._since
        if seconds <= 0:
            return {}
        return {
            f"{name}_per_second": count / seconds for name, count in self._counts.items() if count
        }


class Progress:
    """A bar on a terminal, a plain line every few seconds elsewhere, or nothing.

    Args:
      total: steps of the run.
      start: steps already done.
      mode: 'auto', 'bar', 'plain' or 'none'.
      every: seconds between plain lines.
    """

    def __init__(
        self, total: int, start: int = 0, *, mode: str = "auto", every: float = 10.0, stream=None
    ):
        self._stream = stream or sys.stderr
        if mode == "auto":
            mode = "bar" if self._stream.isatty() else "plain"
        self._total, self._every, self._mode = total, every, mode
        self._last = time.monotonic()
        self._bar: Any = None
        if mode == "bar":
            self._start_bar(start)

    def update(self, step: int, text: Callable[[], str]) -> None:
        """Shows that `step` steps are done; `text` is called only if it is shown."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text())
        elif self._mode == "plain" and time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._print(f"step {step}/{self._total}  {text()}")

    def say(self, line: str) -> None:
        """Shows a line that stays, such as an evaluation's result."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self._mode != "none":
            self._print(line)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def _start_bar(self, start: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(file=self._stream),
        )
        self._task = self._bar.add_task("train", total=self._total, completed=start, text="")
        self._bar.start()


def short_line(values: dict[str, Any], limit: int = 6) -> str:
    """'loss 1.234  ndcg@10 0.0567' from metric values."""
    parts = []
    for name, value in list(values.items())[:limit]:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        parts.append(f"{name} {shown}")
    return "  ".join(parts)
