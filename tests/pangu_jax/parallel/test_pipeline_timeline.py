"""The pipeline simulator against closed forms, against a slower definition, and its plot."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.pipeline_schedule import NONE, ScheduleError, gpipe, interleaved_1f1b
from pangu_jax.parallel.pipeline_timeline import plot_timeline, simulate

SECONDS = st.floats(0.1, 5)
WAITING = st.sampled_from(["blocking", "overlapped", "none"])


@pytest.mark.parametrize("v, percent", [(1, 30.43), (6, 6.80)])
@pytest.mark.parametrize("waiting", ["blocking", "overlapped", "none"])
@pytest.mark.parametrize("cost", [(1.0, 2.0), (1.0, 3.0), (2.0, 1.0)])
def test_bubble_of_the_paper(v, percent, waiting, cost):
    timeline = simulate(interleaved_1f1b((8, v, 16)), *cost, waiting=waiting)
    assert round(100 * timeline.bubble_share, 2) == percent
    np.testing.assert_allclose(timeline.bubble, 7 / (7 + 16 * v))


@given(
    p=st.integers(1, 6), v=st.integers(1, 4), rounds=st.integers(1, 3), forward=SECONDS,
    backward=SECONDS, waiting=WAITING,
)  # fmt: skip
def test_closed_form_where_p_divides_n(p, v, rounds, forward, backward, waiting):
    layout = Layout(pipe=p, virtual_stages=v, microbatches=rounds * p)
    timeline = simulate(interleaved_1f1b(layout), forward, backward, waiting=waiting)
    n = layout.microbatches
    assert timeline.step_time == pytest.approx((n * v + p - 1) * (forward + backward))
    assert timeline.bubble_share == pytest.approx(layout.bubble, abs=1e-12)
    np.testing.assert_allclose(timeline.busy, n * v * (forward + backward))


@given(p=st.integers(2, 6), v=st.integers(1, 4), n=st.integers(1, 12), waiting=WAITING)
def test_any_number_of_microbatches(p, v, n, waiting):
    timeline = simulate(interleaved_1f1b((p, v, n)), 1.0, 2.0, waiting=waiting)
    chunks = n * v if n >= p else p * (v - 1) + n
    assert timeline.step_time == pytest.approx((chunks + p - 1) * 3)


@given(data=st.data(), p=st.integers(1, 5), v=st.integers(1, 3), n=st.integers(1, 8))
def test_dependencies_and_order_of_waiting(data, p, v, n):
    """Every unit waits for its inputs; less common waiting is never slower."""
    costs = st.lists(SECONDS, min_size=p * v, max_size=p * v)
    forward, backward = np.array(data.draw(costs)), np.array(data.draw(costs))
    hop = data.draw(st.floats(0, 2))
    schedule = interleaved_1f1b((p, v, n))
    steps = []
    for waiting in ("none", "overlapped", "blocking"):
        timeline = simulate(schedule, forward, backward, hop=hop, waiting=waiting)
        check_dependencies(timeline, hop if p > 1 else 0.0)
        steps.append(timeline.step_time)
        np.testing.assert_allclose(
            timeline.busy, n * (forward + backward).reshape(v, p).sum(axis=0)
        )
    assert steps[0] <= steps[1] + 1e-9
    assert steps[1] <= steps[2] + 1e-9


def check_dependencies(timeline, hop):
    schedule = timeline.schedule
    p, stages = schedule.pipe, schedule.stages
    times = {}
    for way, chunks, members, starts, ends in (
        ("forward", schedule.forward_chunk, schedule.forward_microbatch,
         timeline.forward_start, timeline.forward_end),
        ("backward", schedule.backward_chunk, schedule.backward_microbatch,
         timeline.backward_start, timeline.backward_end),
    ):  # fmt: skip
        assert (np.isnan(starts) == (chunks == NONE)).all()
        for tick, rank in zip(*np.nonzero(chunks != NONE), strict=True):
            key = (way, int(chunks[tick, rank]) * p + rank, int(members[tick, rank]))
            times[key] = (starts[tick, rank], ends[tick, rank])
    tiny = 1e-9
    for (way, stage, member), (start, _) in times.items():
        before = stage - 1 if way == "forward" else stage + 1
        if 0 <= before < stages:
            assert start >= times[way, before, member][1] + hop - tiny
        if way == "backward":
            assert start >= times["forward", stage, member][1] - tiny
    for rank in range(p):
        spans = sorted(span for (_, stage, _), span in times.items() if stage % p == rank)
        assert all(a[1] <= b[0] + tiny for a, b in zip(spans, spans[1:], strict=False))
        assert spans[-1][1] <= timeline.step_time + tiny


def test_a_slow_last_stage_sets_the_pace():
    schedule = interleaved_1f1b((4, 2, 8))
    forward = np.ones(8)
    forward[-1] = 3.0
    even, uneven = simulate(schedule, 1.0, 2.0), simulate(schedule, forward, 2.0)
    # The last rank has 8 units of 2 more; nothing of it can hide.
    assert uneven.step_time >= even.step_time + 16
    assert uneven.bubble[3] < uneven.bubble[0]


def test_hops_are_paid_where_nothing_hides_them():
    schedule = interleaved_1f1b((8, 6, 16))
    base, hop = 103 * 3.0, 0.1
    blocking = simulate(schedule, 1.0, 2.0, hop=hop).step_time
    hidden = simulate(schedule, 1.0, 2.0, hop=hop, waiting="overlapped").step_time
    # Every tick with a permute pays one; the last gradients go nowhere.
    assert blocking == pytest.approx(base + (103 + 103 - 1) * hop)
    # Only where a rank has no second part to work on meanwhile: before the first backward and
    # after the last forward.
    assert hidden == pytest.approx(base + 2 * 47 * hop)


def test_gpipe_has_the_bubble_but_not_the_memory():
    one, all_ = simulate(interleaved_1f1b((8, 6, 16))), simulate(gpipe(8, 16, 6))
    assert one.bubble_share == pytest.approx(all_.bubble_share)
    assert one.peak_stash.tolist() == [55, 53, 51, 49, 47, 45, 43, 41]
    assert all_.peak_stash.tolist() == [96] * 8


def test_single_rank_never_idles_or_sends():
    timeline = simulate(interleaved_1f1b((1, 1, 5)), 1.0, 2.0, hop=9.0)
    assert timeline.step_time == 15
    assert timeline.bubble_share == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"forward": np.ones(3)}, "forward must be one duration or 4"),
        ({"backward": -1.0}, "backward"),
        ({"hop": -0.1}, "hop=-0.1"),
        ({"waiting": "lazy"}, "waiting='lazy'.*blocking, overlapped, none"),
    ],
)
def test_senseless_durations(arguments, message):
    with pytest.raises(ScheduleError, match=message):
        simulate(interleaved_1f1b((2, 2, 2)), **arguments)


@pytest.mark.parametrize("v", [1, 3])
def test_plot(tmp_path, v):
    import matplotlib.image

    path = tmp_path / "timeline.png"
    plot_timeline(simulate(interleaved_1f1b((2, v, 3)), 1e-3, 2e-3), path)
    image = matplotlib.image.imread(path)
    assert image.shape[1] > 1500
    colours = np.unique((image[..., :3] * 255).astype(int) @ [1 << 16, 1 << 8, 1])
    assert len(colours) > 2 * v + 1  # every shade, the idle time and text
