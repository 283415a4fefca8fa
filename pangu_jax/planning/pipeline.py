"""The pipeline of a layout: its schedule, and the step that durations of stages make of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.pipeline_schedule import Schedule, interleaved_1f1b
from pangu_jax.parallel.pipeline_timeline import Timeline, simulate
from pangu_jax.planning.execution import Execution


def pipeline_schedule(layout: Layout) -> Schedule:
    """Interleaved 1F1B of the layout; kept, because a sweep asks for the same ones again."""
    return _schedule(layout.pipe, layout.virtual_stages, layout.microbatches)


@functools.lru_cache(maxsize=512)
def _schedule(pipe: int, virtual_stages: int, microbatches: int) -> Schedule:
    return interleaved_1f1b((pipe, virtual_stages, microbatches))


def executed_units(layout: Layout, execution: Execution) -> int:
    """Forward parts that a rank executes in a step; as many backward ones.

    In lock step all ranks work in every tick in which any of them has something to do.
    """
    if layout.pipe == 1 or not execution.lock_step:
        return layout.microbatches * layout.virtual_stages
    return int(pipeline_schedule(layout).forward_ticks.sum())


def permutes(layout: Layout, execution: Execution) -> int:
    """Times that a rank sends activations on; as often gradients back.

    In lock step it does so in every tick, whether anybody has something to send or not.
    """
    if execution.lock_step:
        return pipeline_schedule(layout).ticks
    return layout.microbatches * layout.virtual_stages


def pipeline_timeline(
    layout: Layout,
    forward: Sequence[float],
    backward: Sequence[float],
    hop: float,
    execution: Execution,
) -> Timeline:
    """When every unit runs, in seconds.

    Args:
      forward, backward: seconds of a unit, one per stage; backward with what is run again.
      hop: seconds of one transfer to the next rank.
      execution: in lock step, transfers run beside the part of the tick that follows; otherwise
        every rank goes on as soon as its input is there.
    """
    return simulate(
        pipeline_schedule(layout), np.asarray(forward), np.asarray(backward), hop=hop,
        waiting="overlapped" if execution.lock_step else "none",
    )  # fmt: skip
