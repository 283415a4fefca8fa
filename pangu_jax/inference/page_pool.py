"""Which page of the cache belongs to whom, and which prefixes are still there.

A full page is known by the tokens in it and by everything before it, so a prompt that begins like
an earlier one shares that one's pages. Pages that nobody uses any more stay known until their space
is needed, the least recently used first.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence

import numpy as np


class OutOfPages(Exception):
    """There are not enough free pages; the caller makes room or waits."""


class PagePool:
    """Pages 1 .. num_pages - 1; page 0 is for what is thrown away.

    Args:
      num_pages: of the pool, page 0 included.
      page_size: tokens.
      prefix_caching: False forgets pages as soon as they are free.
    """

    def __init__(self, num_pages: int, page_size: int, *, prefix_caching: bool = True):
        self.page_size = page_size
        self.num_pages = num_pages
        self._prefix_caching = prefix_caching
        self._users = np.zeros(num_pages, np.int32)
        self._free: list[int] = list(range(num_pages - 1, 0, -1))
        self._idle: collections.OrderedDict[int, None] = collections.OrderedDict()
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Pages that can be had now, known idle ones included."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self.num_pages - 1 - self.available

    def pages_for(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """`count` pages of undefined content.

        Raises:
          OutOfPages: fewer are available; nothing is taken then.
        """
        if count > self.available:
            raise OutOfPages(f"{count} pages are needed, {self.available} are available")
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                self._forget(page)
            self._users[page] = 1
            pages.append(page)
        return pages

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Pages of the longest known beginning of these page keys; the caller now holds them."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            if self._users[page] == 0:
                del self._idle[page]
            self._users[page] += 1
            pages.append(page)
        return pages

    def publish(self, page: int, key: bytes) -> None:
        """Makes a full page known. Where another page holds the same, that one stays known."""
        if self._prefix_caching and key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Gives pages back; the last ones of a row are the first to be reused."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] < 0:
                raise AssertionError(f"page {page} was given back more often than it was taken")
            if self._users[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def forget_prefixes(self) -> None:
        """Drops every known prefix that nobody uses (after the weights have changed, say)."""
        for page in list(self._idle):
            self._forget(page)
            self._free.append(page)
        self._idle.clear()

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]


def page_keys(tokens: Sequence[int], page_size: int, salt: bytes = b"") -> list[bytes]:
    """A key for every full page of `tokens`, each depending on all before it.

    salt: what else the content of the cache depends on, such as the adapters.
    """
    keys = []
    last = hashlib.sha256(salt).digest()
    array = np.asarray(tokens, np.int64)
    for end in range(page_size, len(array) + 1, page_size):
        last = hashlib.sha256(last + array[end - page_size : end].tobytes()).digest()
        keys.append(last)
    return keys
