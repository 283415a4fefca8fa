"""The page pool against a model of it, over random sequences of what may be done with it."""

from __future__ import annotations

import collections

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pangu_jax.inference.page_pool import OutOfPages, PagePool, page_keys


class PoolMachine(RuleBasedStateMachine):
    """Holders take, match, publish and give back; a mirror of the pool says what must come of it.

    The mirror keeps who holds what, which keys are known, and known idle pages by age.
    """

    @initialize(num_pages=st.integers(2, 9), caching=st.booleans())
    def begin(self, num_pages, caching):
        self.pool = PagePool(num_pages, 4, prefix_caching=caching)
        self.caching = caching
        self.num_pages = num_pages
        self.holders: list[list[int]] = []
        self.known: dict[bytes, int] = {}
        self.idle: list[int] = []  # known and held by nobody, least recently used first

    def users(self):
        return collections.Counter(page for pages in self.holders for page in pages)

    @rule(count=st.integers(0, 4))
    def take(self, count):
        held = self.users()
        free = self.num_pages - 1 - len(held) - len(self.idle)
        if count > free + len(self.idle):
            before = self.pool.available
            with pytest.raises(OutOfPages, match=f"{count} pages are needed, {before}"):
                self.pool.take(count)
            assert self.pool.available == before
            return
        pages = self.pool.take(count)
        assert len(set(pages)) == count and not set(pages) & set(held)
        assert all(1 <= page < self.num_pages for page in pages)
        # Pages without a known prefix go first, then the least recently used ones, in order.
        evicted = self.idle[: max(count - free, 0)]
        assert pages[min(free, count) :] == evicted
        assert not set(pages[:free]) & set(self.idle)
        del self.idle[: len(evicted)]
        self.known = {key: page for key, page in self.known.items() if page not in evicted}
        self.holders.append(pages)

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data())
    def publish(self, data):
        held = sorted(self.users())
        page = data.draw(st.sampled_from(held))
        key = bytes([data.draw(st.integers(0, 5))])
        self.pool.publish(page, key)
        if self.caching and key not in self.known and page not in self.known.values():
            self.known[key] = page

    @rule(data=st.data())
    def match(self, data):
        keys = [bytes([x]) for x in data.draw(st.lists(st.integers(0, 5), max_size=3))]
        pages = self.pool.match(keys)
        expected = []
        for key in keys:
            if key not in self.known:
                break
            expected.append(self.known[key])
        assert pages == expected
        self.idle = [page for page in self.idle if page not in pages]
        self.holders.append(pages)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        pages = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(pages)
        still = self.users()
        for page in reversed(pages):
            if page in self.known.values() and page not in still and page not in self.idle:
                self.idle.append(page)

    @rule()
    def forget(self):
        self.pool.forget_prefixes()
        self.known = {key: page for key, page in self.known.items() if page not in self.idle}
        self.idle = []

    @invariant()
    def every_page_is_counted_once(self):
        if not hasattr(self, "pool"):
            return
        assert self.pool.used == len(self.users())
        assert self.pool.available + self.pool.used == self.num_pages - 1


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_giving_back_twice_is_an_error():
    pool = PagePool(4, 8)
    pages = pool.take(2)
    pool.release(pages)
    with pytest.raises(AssertionError, match="more often than it was taken"):
        pool.release(pages[:1])


def test_the_beginning_of_a_prompt_outlives_its_end():
    """Of a row's pages the last is the first to go: a prefix without its beginning is no use."""
    pool = PagePool(5, 8)
    pages = pool.take(3)
    for page, key in zip(pages, (b"a", b"ab", b"abc"), strict=True):
        pool.publish(page, key)
    pool.release(pages)
    pool.take(2)  # one free page, one known
    assert pool.match([b"a", b"ab", b"abc"]) == pages[:2]


@given(tokens=st.lists(st.integers(0, 3), max_size=20), change=st.data())
def test_keys_name_a_page_and_all_before_it(tokens, change):
    keys = page_keys(tokens, 4)
    assert len(keys) == len(tokens) // 4 and len(set(keys)) == len(keys)
    assert page_keys(np.asarray(tokens, np.int32), 4) == keys
    assert page_keys([*tokens, 1], 4)[: len(keys)] == keys
    assert not set(page_keys(tokens, 4, b"adapter")) & set(keys)
    if keys:
        place = change.draw(st.integers(0, len(keys) * 4 - 1))
        other = list(tokens)
        other[place] += 1
        same = [a == b for a, b in zip(page_keys(other, 4), keys, strict=True)]
        assert same == [index < place // 4 for index in range(len(keys))]


@given(tokens=st.integers(0, 100), size=st.integers(1, 9))
def test_pages_for(tokens, size):
    pages = PagePool(3, size).pages_for(tokens)
    assert pages * size >= tokens > (pages - 1) * size
