"""How far an evaluation is: a bar on the terminal, or calls of a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

Progress = Callable[[int, int | None], None]
"""(batches done, total or None) -> None."""


def with_progress(stream: Iterable, batches: Iterable, progress: Progress | bool) -> Iterator:
    """`stream`, one item per batch, with a bar (True) or calls of `progress`."""
    if progress is False or progress is None:
        yield from stream
        return
    total = len(batches) if hasattr(batches, "__len__") else None
    if progress is not True:
        for done, item in enumerate(stream, 1):
            yield item
            progress(done, total)
        return
    from rich.progress import track  # Lazy: only a terminal needs it.

    yield from track(stream, description="evaluate", total=total)
