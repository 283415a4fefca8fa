"""Pipeline schedules: every rule of the executor over random sizes, and known closed forms.

Letters: p pipeline ranks, v virtual stages, n micro-batches, r a rank.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.pipeline_schedule import (
    NONE,
    Schedule,
    ScheduleError,
    gpipe,
    interleaved_1f1b,
    verify,
)

RANKS, CHUNKS, COUNT = st.integers(1, 9), st.integers(1, 6), st.integers(1, 20)
TABLES = [field.name for field in dataclasses.fields(Schedule) if field.type == "np.ndarray"]


@given(p=RANKS, v=CHUNKS, n=COUNT)
def test_interleaved_obeys_every_rule(p, v, n):
    schedule = interleaved_1f1b((p, v, n))
    verify(schedule)
    for name in TABLES:
        assert getattr(schedule, name).shape == (schedule.ticks, p)
        assert getattr(schedule, name).dtype == np.int32


@given(p=RANKS, v=CHUNKS, n=COUNT)
def test_gpipe_obeys_every_rule(p, v, n):
    schedule = gpipe(p, n, v)
    verify(schedule)
    # All forwards before all backwards: everything is in flight.
    assert np.flatnonzero(schedule.forward_ticks)[-1] < np.flatnonzero(schedule.backward_ticks)[0]
    assert [schedule.in_flight(rank) for rank in range(p)] == [n * v] * p
    assert schedule.num_stash_slots == n * v


@given(data=st.data(), p=RANKS, v=CHUNKS, n=COUNT)
def test_any_groups_obey_every_rule(data, p, v, n):
    groups = []
    while sum(groups) < n:
        groups.append(data.draw(st.integers(1, n - sum(groups))))
    verify(interleaved_1f1b((p, v, n), groups=groups))


@given(p=RANKS, v=CHUNKS, rounds=st.integers(1, 4))
def test_ticks_where_p_divides_n(p, v, rounds):
    n = rounds * p
    schedule = interleaved_1f1b((p, v, n))
    order = [(c, g * p + m) for g in range(rounds) for c in range(v) for m in range(p)]
    back = [(v - 1 - c, m) for c, m in order]
    for rank in range(p):
        for k in range(n * v):
            tick = rank + k
            assert schedule.forward_chunk[tick, rank] == order[k][0]
            assert schedule.forward_microbatch[tick, rank] == order[k][1]
            tick = v * p - 1 + p - 1 - rank + k
            assert schedule.backward_chunk[tick, rank] == back[k][0]
            assert schedule.backward_microbatch[tick, rank] == back[k][1]
        peak = min((v - 1) * p + 2 * (p - rank) - 1, n * v)
        assert schedule.in_flight(rank) == peak
    assert schedule.ticks == n * v + v * p + p - 2
    assert schedule.num_stash_slots == min((v + 1) * p - 1, n * v)
    # What arrives is used in the very next tick.
    assert schedule.num_activation_slots == schedule.num_gradient_slots == int(p * v > 1)


@given(p=RANKS, v=CHUNKS, n=COUNT)
def test_no_rank_waits_in_the_middle_unless_microbatches_are_too_few(p, v, n):
    schedule = interleaved_1f1b((p, v, n))
    least = n * v + p - 1
    worst = p * (v - 1) + n + p - 1  # every chunk waits for the one before it
    needed = least if n >= p else worst
    assert schedule.forward_ticks.sum() == schedule.backward_ticks.sum() == needed


@given(p=st.integers(2, 8), v=st.integers(2, 6), n=COUNT)
def test_memory_price_of_large_groups(p, v, n):
    schedule = interleaved_1f1b((p, v, n))
    group = -(-n // max(n // p, 1))
    assert schedule.num_stash_slots == max(schedule.in_flight(rank) for rank in range(p))
    assert schedule.in_flight(0) <= min((v - 1) * max(group, p) + 2 * p - 1, n * v)


def test_groups_of_p_stall_where_p_does_not_divide_n():
    even, ragged = interleaved_1f1b((8, 6, 12)), interleaved_1f1b((8, 6, 12), groups=(8, 4))
    assert even.forward_ticks.sum() == 12 * 6 + 7
    assert ragged.forward_ticks.sum() == 12 * 6 + 7 + 5 * 4  # 4 ranks short, 5 times
    assert (even.in_flight(0), ragged.in_flight(0)) == (72, 52)


def test_memory_does_not_grow_with_microbatches():
    slots = [interleaved_1f1b((4, 2, n)).num_stash_slots for n in (4, 8, 16, 32)]
    assert slots == [8, 11, 11, 11]
    assert [gpipe(4, n, 2).num_stash_slots for n in (4, 8, 16, 32)] == [8, 16, 32, 64]


def test_slots_are_the_fewest():
    schedule = interleaved_1f1b((8, 6, 16))
    takes = np.vstack([np.zeros((1, 8), bool), schedule.stash_take[:-1] != NONE])
    live = np.cumsum(schedule.stash_put != NONE, axis=0) - np.cumsum(takes, axis=0)
    assert schedule.num_stash_slots == live.max() == 55


def test_sizes_from_a_layout():
    layout = Layout(pipe=4, virtual_stages=2, microbatches=8)
    a, b = interleaved_1f1b(layout), interleaved_1f1b((4, 2, 8))
    for name in TABLES:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: interleaved_1f1b((0, 1, 1)), "pipe=0"),
        (lambda: interleaved_1f1b((2, 0, 1)), "virtual_stages=0"),
        (lambda: gpipe(2, 0), "microbatches=0"),
        (lambda: interleaved_1f1b((2, 2, 4), groups=(2, 1)), "groups=.2, 1. .*microbatches=4"),
        (lambda: interleaved_1f1b((2, 2, 4), groups=(4, 0)), "at least 1"),
        (lambda: interleaved_1f1b((2, 2, 4), groups=()), "at least 1"),
    ],
)
def test_senseless_sizes(build, message):
    with pytest.raises(ScheduleError, match=message):
        build()


@given(data=st.data(), p=st.integers(2, 5), v=st.integers(1, 3), n=st.integers(1, 8))
def test_verify_finds_any_changed_entry(data, p, v, n):
    schedule = interleaved_1f1b((p, v, n))
    name = data.draw(st.sampled_from(TABLES))
    table = getattr(schedule, name).copy()
    tick = data.draw(st.integers(0, schedule.ticks - 1))
    rank = data.draw(st.integers(0, p - 1))
    new = data.draw(st.integers(NONE, max(v, n)).filter(lambda x: x != table[tick, rank]))
    table[tick, rank] = new
    with pytest.raises(ScheduleError):
        verify(dataclasses.replace(schedule, **{name: table}))


def test_verify_finds_an_overwritten_slot():
    schedule = interleaved_1f1b((4, 2, 8))
    squeezed = {
        name: np.minimum(getattr(schedule, name), schedule.num_stash_slots - 2)
        for name in ("stash_put", "stash_take")
    }
    with pytest.raises(ScheduleError, match="stash slot 9, which holds"):
        verify(dataclasses.replace(schedule, **squeezed))


def test_verify_finds_a_missing_unit():
    schedule = interleaved_1f1b((2, 1, 3))
    cut = {name: getattr(schedule, name)[:-1] for name in TABLES}
    with pytest.raises(ScheduleError, match="not all"):
        verify(dataclasses.replace(schedule, **cut))
