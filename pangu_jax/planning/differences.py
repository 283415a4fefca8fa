"""Planned collectives beside those of a compiled program."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from pangu_jax.planning.communication import Collective
from pangu_jax.planning.hlo import HloCollectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One kind of collective in groups of one size; counts and result bytes per step and device.

    conditional_count, conditional_bytes: those of the compiled ones that stand in branches which
    not every device takes every time; compiled_... counts them as if always taken.
    """

    kind: str
    group: int | None
    planned_count: float
    planned_bytes: float
    compiled_count: int
    compiled_bytes: int
    conditional_count: int
    conditional_bytes: int

    @property
    def explained(self) -> bool:
        """The plan lies between never and always taking the branches, to 1 % of the bytes."""
        least = self.compiled_bytes - self.conditional_bytes
        slack = 0.01 * max(self.compiled_bytes, self.planned_bytes)
        return least - slack <= self.planned_bytes <= self.compiled_bytes + slack


def collective_differences(
    planned: Sequence[Collective], compiled: HloCollectives
) -> list[Difference]:
    """Plan and program, kind by kind and group size by group size, most bytes first.

    Axes of one size fall together, because a program's text names groups, not axes. Groups of one
    device are left out.
    """
    sums: dict[tuple[str, int | None], collections.Counter] = collections.defaultdict(
        collections.Counter
    )
    for one in planned:
        sums[one.kind, one.group].update(planned_count=one.count, planned_bytes=one.output_bytes)
    for op in compiled.operations:
        entry = sums[op.kind, op.group_size]
        size = op.executions * op.bytes
        entry.update(compiled_count=op.executions, compiled_bytes=size)
        if op.conditional:
            entry.update(conditional_count=op.executions, conditional_bytes=size)
    fields = [f.name for f in dataclasses.fields(Difference) if f.name not in ("kind", "group")]
    found = [
        Difference(kind=kind, group=group, **{name: entry[name] for name in fields})
        for (kind, group), entry in sums.items()
        if group != 1
    ]
    return sorted(found, key=lambda d: -max(d.planned_bytes, d.compiled_bytes))
