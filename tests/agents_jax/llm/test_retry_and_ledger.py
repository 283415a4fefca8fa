"""Retries under a clock that does not wait; sums and budgets of the ledger."""

import asyncio
import datetime
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_jax.llm import (
    CallError,
    InvalidRequest,
    Ledger,
    Prices,
    RecordingError,
    RetryPolicy,
    Usage,
)
from agents_jax.llm.errors import RETRIED
from agents_jax.llm.retry import parse_retry_after, with_retries

NOT_RETRIED = ("auth", "bad_request", "not_found", "malformed", "budget", "unsupported")


class FakeClock:
    def __init__(self):
        self.time, self.slept = 0.0, []

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds


def attempt(outcomes, policy, *, seed=0, takes=0.0, clock=None):
    """The result of retries over a list of outcomes, and the clock."""
    clock = clock or FakeClock()
    rest = list(outcomes)

    async def call(left):
        clock.time += takes
        outcome = rest.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def go():
        return await with_retries(call, policy, clock=clock, rng=random.Random(seed))

    try:
        return asyncio.run(go()), clock, rest
    except CallError as error:
        return error, clock, rest


policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 8),
    base=st.floats(0, 5),
    cap=st.floats(0, 60),
    deadline=st.none() | st.floats(1, 200),
)


@given(policies, st.integers(0, 10), st.sampled_from(sorted(RETRIED)), st.integers(0, 999))
def test_attempts_and_delays_stay_in_their_bounds(policy, failures, kind, seed):
    outcomes = [CallError(kind, "no")] * failures + ["yes"] + ["never"] * 10
    result, clock, _ = attempt(outcomes, policy, seed=seed, takes=1.0)
    for number, slept in enumerate(clock.slept, 1):
        assert 0 <= slept <= min(policy.cap, policy.base * 2 ** (number - 1))
    if isinstance(result, CallError):
        assert result.kind in (kind, "deadline")
        assert result.attempts == len(result.history) == len(clock.slept) + 1
        assert result.attempts <= policy.max_attempts
        if result.kind != "deadline":
            assert result.attempts == policy.max_attempts <= failures
    else:
        answer, history = result
        assert answer == "yes" and len(history) == failures + 1 <= policy.max_attempts
        assert [a.waited for a in history[:-1]] == clock.slept
    if policy.deadline is not None and clock.slept:
        # No wait ends after the deadline, and no attempt begins after it.
        assert clock.time - 1.0 <= policy.deadline


def test_jitter_fills_its_range():
    policy = RetryPolicy(max_attempts=2, base=8.0, deadline=None)
    delays = [
        attempt([CallError("server", "no"), "yes"], policy, seed=seed)[1].slept[0]
        for seed in range(400)
    ]
    assert min(delays) < 0.4 and max(delays) > 7.6
    assert abs(sum(delays) / len(delays) - 4.0) < 0.5


@pytest.mark.parametrize("kind", NOT_RETRIED)
def test_what_will_not_pass_is_not_tried_again(kind):
    result, clock, rest = attempt([CallError(kind, "no"), "yes"], RetryPolicy())
    assert result.kind == kind and result.attempts == 1
    assert clock.slept == [] and rest == ["yes"]


def test_retry_after_is_a_lower_bound():
    policy = RetryPolicy(base=1.0, deadline=None)
    failed = CallError("rate_limit", "slow down", retry_after=17.0)
    result, clock, _ = attempt([failed, "yes"], policy)
    assert result[0] == "yes" and clock.slept == [17.0]
    late = CallError("rate_limit", "slow down", retry_after=301.0)
    result, clock, _ = attempt([late, "yes"], policy)
    assert result.attempts == 1 and "max_retry_after" in str(result)
    result, clock, _ = attempt([failed, "yes"], RetryPolicy(deadline=10.0))
    assert result.kind == "deadline" and clock.slept == [] and "deadline=10" in str(result)


@pytest.mark.parametrize(
    "value, seconds",
    [(None, None), ("3", 3.0), (" 1.5 ", 1.5), ("soon", None), ("-3", None), ("1.2.3", None)],
)
def test_retry_after_in_seconds(value, seconds):
    assert parse_retry_after(value) == seconds


def test_retry_after_as_a_date():
    now = datetime.datetime(2026, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)
    assert parse_retry_after("Thu, 01 Jan 2026 12:00:30 GMT", now) == 30.0
    assert parse_retry_after("Thu, 01 Jan 2026 11:00:00 GMT", now) == 0.0


@pytest.mark.parametrize(
    "settings", [{"max_attempts": 0}, {"base": -1}, {"cap": math.inf}, {"deadline": 0}]
)
def test_impossible_policies_are_refused(settings):
    with pytest.raises(InvalidRequest, match=next(iter(settings))):
        RetryPolicy(**settings)


usages = st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**6))


@given(st.lists(usages, max_size=12))
def test_the_ledger_sums_and_reads_itself_back(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("ledger") / "ledger.json"
    prices = Prices(input=2.0, output=8.0, cached_input=0.5)

    async def go(ledger):
        for usage in entries:
            ledger.settle(await ledger.reserve(usage), usage, model="m")

    ledger = Ledger(path, prices=prices)
    asyncio.run(go(ledger))
    ledger.close()
    expected = sum(u.prompt_tokens * 2 + u.completion_tokens * 8 for u in entries) / 1e6
    assert ledger.cost == pytest.approx(expected)
    assert ledger.calls == len(entries)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(line["cost"] for line in lines) == pytest.approx(expected)
    again = Ledger(path, prices=prices)
    assert again.summary() == ledger.summary()
    again.close()


def test_cached_tokens_have_their_price():
    usage = Usage(1_000_000, 0, cached_tokens=400_000)
    assert Prices(input=2.0, output=0.0, cached_input=0.5).cost(usage) == pytest.approx(1.4)
    assert Prices(input=2.0, output=0.0).cost(usage) == pytest.approx(2.0)


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100)), min_size=1, max_size=30),
       st.integers(0, 1500), st.integers(1, 6))  # fmt: skip
def test_the_budget_is_never_overrun(calls, budget, workers):
    """Each call sets aside `bound` and uses at most that, several at once."""
    ledger = Ledger(prices=Prices(input=1e6, output=0.0), budget=float(budget))
    queue = iter(calls)
    refused = []

    async def work():
        for bound, used in queue:
            try:
                reserved = await ledger.reserve(Usage(bound))
            except CallError as error:
                assert error.kind == "budget"
                refused.append(bound)
                assert ledger.cost + bound > budget  # nothing is running: it truly has no room
                continue
            assert ledger.cost + bound <= budget
            await asyncio.sleep(0)
            ledger.settle(reserved, Usage(min(bound, used)))

    async def go():
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(workers))), 20)

    asyncio.run(go())
    assert ledger.cost <= budget
    assert ledger.calls == len(calls) - len(refused)


def test_a_budget_needs_prices_and_a_ledger_whole_lines(tmp_path):
    with pytest.raises(InvalidRequest, match="needs prices"):
        Ledger(budget=1.0)
    with pytest.raises(InvalidRequest, match="budget=-1"):
        Ledger(prices=Prices(input=1, output=1), budget=-1)
    with pytest.raises(InvalidRequest, match="output=-1"):
        Prices(input=1, output=-1)
    path = tmp_path / "ledger.json"
    path.write_text('{"usage": {"prompt_tokens": 1}, "cost": 1}\n{"usage": {"wrong": 1}}\n')
    with pytest.raises(RecordingError, match="line 2"):
        Ledger(path)
