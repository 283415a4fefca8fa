"""The pipeline's schedule as the program reads it: per tick and rank, what to do and which slots.

Letters: T ticks, p ranks.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.pipeline_schedule import NONE, interleaved_1f1b


@dataclasses.dataclass(frozen=True)
class TickTable:
    """What every rank does in every tick of a layout's interleaved 1F1B.

    rows: name -> int32 (T, p). f_chunk, f_micro, b_chunk, b_micro: of the forward and the backward
    part, 0 for none. f_first, b_first, b_last: 1 where that is the first or the last stage.
    b_active: 1 where there is a backward part. Slots as in `Schedule`; in place of its NONE stands
    the last slot of a buffer, which nothing else uses.
    any_forward, any_backward: bool (T,), whether any rank has such a part.
    slots: how many every buffer has, that last one included.
    """

    rows: dict[str, np.ndarray]
    any_forward: np.ndarray
    any_backward: np.ndarray
    slots: dict[str, int]

    @classmethod
    def build(cls, layout: Layout) -> TickTable:
        schedule = interleaved_1f1b(layout)
        slots = {
            "activation": schedule.num_activation_slots + 1,
            "stash": schedule.num_stash_slots + 1,
            "gradient": schedule.num_gradient_slots + 1,
        }
        rows = {}
        for short, part in (("f", "forward"), ("b", "backward")):
            chunk = getattr(schedule, f"{part}_chunk")
            stage = np.where(chunk == NONE, NONE, chunk * schedule.pipe + np.arange(schedule.pipe))
            rows[f"{short}_first"] = stage == 0
            rows[f"{short}_last"] = stage == schedule.stages - 1
            rows[f"{short}_active"] = chunk != NONE
            rows[f"{short}_chunk"] = np.maximum(chunk, 0)
            rows[f"{short}_micro"] = np.maximum(getattr(schedule, f"{part}_microbatch"), 0)
        for name, count in slots.items():
            for way in ("put", "take"):
                table = getattr(schedule, f"{name}_{way}")
                rows[f"{name}_{way}"] = np.where(table == NONE, count - 1, table)
        rows = {name: table.astype(np.int32) for name, table in rows.items()}
        return cls(rows, schedule.forward_ticks, schedule.backward_ticks, slots)
