"""When every rank of a pipeline works and when it waits: an event-driven simulation and its plot.

The program is that of `pipeline_schedule`: a forward part, a permute of activations, a backward
part, a permute of gradients in every tick (parts that no rank uses in a tick are left out). A
permute ties a rank to its neighbour in the ring, not to all ranks.

Letters: p pipeline ranks, n micro-batches, v virtual stages.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Literal, get_args

import numpy as np

from pangu_jax.parallel.pipeline_schedule import NONE, Schedule, ScheduleError

Waiting = Literal["blocking", "overlapped", "none"]

_INK, _MUTED, _IDLE = "#1f2933", "#7b8794", "#edf0f3"
_FORWARD, _BACKWARD = ("#b9d3f0", "#1f4f8f"), ("#f6cdbd", "#a83e22")  # first to last chunk


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Timeline:
    """Start and end of everything, in seconds from the start of the step.

    forward_start, forward_end, backward_start, backward_end: float64 [ticks, p]; NaN where the
      schedule has nothing.
    step_time: until the last backward ends; neither optimizer nor gradient exchange.
    busy: float64 [p], time each rank computes. bubble: float64 [p], share of the step it does not.
    peak_stash: int [p], most chunk inputs held at one time.
    """

    schedule: Schedule
    forward_start: np.ndarray
    forward_end: np.ndarray
    backward_start: np.ndarray
    backward_end: np.ndarray
    step_time: float
    busy: np.ndarray
    bubble: np.ndarray
    peak_stash: np.ndarray

    @property
    def bubble_share(self) -> float:
        """Mean share of the step in which ranks do not compute."""
        return float(self.bubble.mean())


def simulate(
    schedule: Schedule,
    forward: float | np.ndarray = 1.0,
    backward: float | np.ndarray = 2.0,
    *,
    hop: float = 0.0,
    waiting: Waiting = "blocking",
) -> Timeline:
    """Plays a schedule with given durations.

    Args:
      forward, backward: seconds of a unit, one number or one per stage, [stages]: embedding and
        head make the first and last stage longer. `backward` includes recomputation.
      hop: seconds that one activation or gradient takes to the next rank.
      waiting: 'blocking': a part starts when the permute before it is over (the program run as
        written). 'overlapped': a permute runs beside the part that follows it and must be over
        one part later, where its result may be needed. 'none': no common ticks; a unit starts as
        soon as its rank is free and its own inputs are there (separate programs per rank).

    Raises:
      ScheduleError: durations of the wrong length or below 0, an unknown `waiting`.
    """
    if waiting not in get_args(Waiting):
        raise ScheduleError(f"waiting={waiting!r} is not one of {', '.join(get_args(Waiting))}.")
    cost = {
        "forward": _per_stage(schedule, forward, "forward"),
        "backward": _per_stage(schedule, backward, "backward"),
    }
    if hop < 0:
        raise ScheduleError(f"hop={hop} must not be negative.")
    play = _play_free if waiting == "none" else _play_ticks
    start, end = play(schedule, cost, hop, waiting == "overlapped")
    step = max(np.nanmax(end["forward"]), np.nanmax(end["backward"]))
    busy = sum(np.nansum(end[way] - start[way], axis=0) for way in cost)
    return Timeline(
        schedule=schedule,
        forward_start=start["forward"],
        forward_end=end["forward"],
        backward_start=start["backward"],
        backward_end=end["backward"],
        step_time=float(step),
        busy=busy,
        bubble=1 - busy / step if step else np.zeros(schedule.pipe),
        peak_stash=np.array([schedule.in_flight(rank) for rank in range(schedule.pipe)]),
    )


def _per_stage(schedule: Schedule, value: float | np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != schedule.stages) or (array < 0).any():
        raise ScheduleError(
            f"{name} must be one duration or {schedule.stages} (one per stage), none below 0; got "
            f"shape {array.shape}."
        )
    return np.broadcast_to(array, (schedule.stages,))


def _costs(schedule: Schedule, cost: dict[str, np.ndarray], way: str) -> np.ndarray:
    """float64 [ticks, p]; NaN where nothing runs."""
    chunk = schedule.forward_chunk if way == "forward" else schedule.backward_chunk
    stage = chunk * schedule.pipe + np.arange(schedule.pipe)
    return np.where(chunk == NONE, np.nan, cost[way][np.where(chunk == NONE, 0, stage)])


def _play_ticks(schedule: Schedule, cost: dict[str, np.ndarray], hop: float, overlapped: bool):
    """The ticks one after the other; ring neighbours wait for each other's permutes."""
    pipe = schedule.pipe
    length = {way: _costs(schedule, cost, way) for way in cost}
    start = {way: np.full_like(length[way], np.nan) for way in cost}
    end = {way: np.full_like(length[way], np.nan) for way in cost}
    runs = {"forward": schedule.forward_ticks, "backward": schedule.backward_ticks}
    shift = {"forward": 1, "backward": -1}  # whose result arrives: rank r - 1's, rank r + 1's
    free = np.zeros(pipe)  # when each rank can go on
    arrived = {way: np.zeros(pipe) for way in cost}  # when its last permute of that kind is over
    for tick in range(schedule.ticks):
        for way in cost:
            if not runs[way][tick]:
                continue
            if overlapped:
                free = np.maximum(free, arrived[way])
            here = length[way][tick]
            idle = np.isnan(here)
            start[way][tick] = np.where(idle, np.nan, free)
            free = free + np.where(idle, 0.0, here)
            end[way][tick] = np.where(idle, np.nan, free)
            if pipe > 1:
                arrived[way] = np.maximum(free, np.roll(free, shift[way])) + hop
            if not overlapped and pipe > 1:
                free = arrived[way]
    return start, end


def _play_free(schedule: Schedule, cost: dict[str, np.ndarray], hop: float, _: bool):
    """Every rank goes through its own units in their order, as soon as their inputs are there."""
    pipe, last = schedule.pipe, schedule.stages - 1
    hop = hop if pipe > 1 else 0.0
    shape = (schedule.stages, schedule.microbatches)
    done = {way: np.zeros(shape) for way in cost}
    length = {way: _costs(schedule, cost, way) for way in cost}
    start = {way: np.full_like(length[way], np.nan) for way in cost}
    end = {way: np.full_like(length[way], np.nan) for way in cost}
    tables = {
        "forward": (schedule.forward_chunk, schedule.forward_microbatch),
        "backward": (schedule.backward_chunk, schedule.backward_microbatch),
    }
    free = np.zeros(pipe)
    for tick in range(schedule.ticks):
        for way, (chunks, microbatches) in tables.items():
            for rank in range(pipe):
                if chunks[tick, rank] == NONE:
                    continue
                stage = int(chunks[tick, rank]) * pipe + rank
                microbatch = int(microbatches[tick, rank])
                before = stage - 1 if way == "forward" else stage + 1
                needed = done[way][before, microbatch] + hop if 0 <= before <= last else 0.0
                start[way][tick, rank] = max(free[rank], needed)
                free[rank] = start[way][tick, rank] + length[way][tick, rank]
                end[way][tick, rank] = done[way][stage, microbatch] = free[rank]
    return start, end


def plot_timeline(timeline: Timeline, path: str | os.PathLike, *, title: str | None = None) -> None:
    """Writes a PNG: one row per rank, forward and backward in shades by chunk, idle time grey.

    Micro-batch numbers stand in the boxes of a kind where all of them can be read.
    """
    # No pyplot: no global state, no display.
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    schedule = timeline.schedule
    pipe, virtual = schedule.pipe, schedule.virtual_stages
    step = timeline.step_time
    scale, unit = (1e6, "us") if step < 1e-3 else (1e3, "ms") if step < 1 else (1.0, "s")
    width = 14.0
    figure = Figure(figsize=(width, 1.3 + 0.42 * pipe), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shades = {}
    ways = (
        ("forward", _FORWARD, timeline.forward_start, timeline.forward_end,
         schedule.forward_chunk, schedule.forward_microbatch),
        ("backward", _BACKWARD, timeline.backward_start, timeline.backward_end,
         schedule.backward_chunk, schedule.backward_microbatch),
    )  # fmt: skip
    axes.barh(np.arange(pipe), step * scale, height=0.86, color=_IDLE, zorder=0)
    inch = (width - 1.0) / (step * scale)
    for name, ends, start, end, chunk, microbatch in ways:
        colours = LinearSegmentedColormap.from_list(name, ends)
        shades[name] = [colours(c / max(virtual - 1, 1)) for c in range(virtual)]
        if virtual == 1:
            shades[name] = [colours(0.5)]
        ticks, ranks = np.nonzero(chunk != NONE)
        left, length = start[ticks, ranks] * scale, (end - start)[ticks, ranks] * scale
        x = np.stack([left, left, left + length, left + length], axis=1)
        y = ranks[:, None] + 0.43 * np.array([-1, 1, 1, -1])
        # One artist for all boxes: thousands would take seconds to lay out.
        boxes = PolyCollection(
            np.stack([x, y], axis=2),
            facecolors=[shades[name][c] for c in chunk[ticks, ranks]],
            edgecolors="white", linewidths=0.3 if inch * np.median(length) > 0.04 else 0.0,
        )  # fmt: skip
        axes.add_collection(boxes, autolim=False)
        if inch * length.min() < 0.07 * len(str(schedule.microbatches - 1)) + 0.02:
            continue
        for x, size, rank, c, m in zip(
            left, length, ranks, chunk[ticks, ranks], microbatch[ticks, ranks], strict=True
        ):
            dark = virtual > 1 and c >= virtual / 2
            axes.text(
                x + size / 2, rank, str(m), ha="center", va="center_baseline", fontsize=6,
                color="white" if dark else _INK,
            )  # fmt: skip
    axes.set_yticks(range(pipe), [f"rank {rank}" for rank in range(pipe)], fontsize=8)
    axes.set_ylim(pipe - 0.5, -0.5)
    axes.set_xlim(0, step * scale)
    axes.set_xlabel(f"time [{unit}]", fontsize=8)
    axes.tick_params(axis="both", labelsize=8, length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_title(
        title
        or f"{pipe} ranks, {virtual} chunk{'s' * (virtual > 1)} each, {schedule.microbatches} "
        f"micro-batches: idle {100 * timeline.bubble_share:.2f} %",
        loc="left", fontsize=10, color=_INK,
    )  # fmt: skip
    handles = [
        Patch(color=shade, label=name if virtual == 1 else f"{name}, chunk {chunk}")
        for name in shades
        for chunk, shade in enumerate(shades[name])
        if chunk in (0, virtual - 1)
    ]
    handles.append(Patch(color=_IDLE, label="idle"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8,
        labelcolor=_MUTED,
    )  # fmt: skip
    figure.savefig(path)
