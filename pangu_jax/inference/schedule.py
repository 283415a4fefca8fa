"""Which requests run, which wait, and whose pages are whose."""

from __future__ import annotations

import collections
import dataclasses
import time

from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.page_pool import OutOfPages, PagePool
from pangu_jax.inference.row import Row


@dataclasses.dataclass
class Statistics:
    """What an engine has done so far.

    prompt_tokens: of the requests that were let in; cached_tokens of them were in the pool.
    generated_tokens; dispatches of both programs; preemptions: how often a running row gave way.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefill_dispatches: int = 0
    decode_dispatches: int = 0
    preemptions: int = 0


class Schedule:
    """Rows that wait and rows that run, in order of arrival, over one pool of pages."""

    def __init__(self, config: EngineConfig):
        self._config = config
        self.statistics = Statistics()
        self.waiting: collections.deque[Row] = collections.deque()
        self.running: list[Row] = []
        self.clear_pages()

    def clear_pages(self) -> None:
        """A pool in which nothing is known; whoever holds pages must not give them back."""
        config = self._config
        self.pool = PagePool(config.pages, config.page_size, prefix_caching=config.prefix_caching)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self.running and not self.waiting

    def find(self, request_id: str) -> Row | None:
        """The row of a request, running or waiting."""
        for rows in (self.running, self.waiting):
            for row in rows:
                if row.request.id == request_id:
                    return row
        return None

    def remove(self, row: Row) -> None:
        """Forgets a row; its pages are free, and known for prompts that begin alike."""
        self.pool.release(row.pages)
        row.pages = []
        # By identity: rows are compared field by field otherwise.
        self.running = [other for other in self.running if other is not row]
        self.waiting = collections.deque(other for other in self.waiting if other is not row)

    def admit(self) -> None:
        """Lets waiting requests in, as far as there are rows and pages."""
        reading = {
            key for row in self.running if not row.decoding for key in row.keys()[row.published :]
        }
        passed_over = []
        while self.waiting and len(self.running) < self._config.max_rows:
            row = self.waiting.popleft()
            keys = row.reusable() if self._config.prefix_caching else []
            pages = self.pool.match(keys)
            if len(pages) < len(keys) and keys[len(pages)] in reading:
                # Another request is just computing this very prefix: wait for its pages.
                self.pool.release(pages)
                passed_over.append(row)
                continue
            # Room for all of the prompt: half-read prompts that wait for each other are no use.
            missing = self.pool.pages_for(row.length) - len(pages)
            if missing > self.pool.available:
                self.pool.release(pages)
                self.waiting.appendleft(row)
                break
            row.pages = pages + self.pool.take(missing)
            row.computed = len(pages) * self._config.page_size
            row.published = len(pages)
            if row.cached is None:
                row.cached = row.computed
                self.statistics.cached_tokens += row.computed
                self.statistics.prompt_tokens += len(row.request.prompt_ids)
                row.started = row.started or time.perf_counter()
            self.running.append(row)
            reading |= set(row.keys()[row.published :])
        self.waiting.extendleft(reversed(passed_over))

    def publish(self, row: Row) -> None:
        """Makes the pages that a row has filled known."""
        full = row.computed // self._config.page_size
        if full > row.published:
            keys = row.keys()
            for index in range(row.published, full):
                self.pool.publish(row.pages[index], keys[index])
            row.published = full

    def make_room(self, rows: list[Row], steps: int) -> list[Row]:
        """Rows with pages for their next tokens; where there are none, the youngest give way."""
        kept = []
        for row in rows:
            if not any(row is other for other in self.running):
                continue  # gave way to an older one
            wanted = self.pool.pages_for(row.computed + min(steps, row.remaining))
            while True:
                try:
                    row.pages += self.pool.take(max(wanted - len(row.pages), 0))
                    kept.append(row)
                    break
                except OutOfPages:
                    youngest = self.running[-1]
                    self._put_back(youngest)
                    if youngest is row:
                        break
        return kept

    def _put_back(self, row: Row) -> None:
        self.statistics.preemptions += 1
        self.pool.release(row.pages)
        row.pages, row.computed, row.published = [], 0, 0
        self.running = [other for other in self.running if other is not row]
        self.waiting.appendleft(row)
